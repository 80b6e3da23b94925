"""Axes: ticks at numbers that people can read, and pixels that one can work out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cluster.report.scales import Scale, make_scale, tick_label


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 10, ["0", "2", "4", "6", "8", "10"]),
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 20000, ["0", "5000", "10k", "15k", "20k"]),
        (0.29, 0.33, ["0.29", "0.30", "0.31", "0.32", "0.33"]),
        (-3, 3, ["-2", "0", "2"]),
        (0, 3e6, ["0", "1M", "2M", "3M"]),
    ],
)
def test_linear_ticks_are_round_numbers(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in Scale("", low, high).ticks(5)] == labels


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1e-4, 1, ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "1"]),
        (0.15, 1.2, ["0.2", "0.5", "1"]),
        (1, 1000, ["1", "10", "100", "1000"]),
        (1e-9, 1, ["10⁻⁹", "10⁻⁷", "10⁻⁵", "10⁻³", "10⁻¹"]),
        (2.1, 2.9, ["2.2", "2.4", "2.6", "2.8"]),
    ],
)
def test_logarithmic_ticks_are_decades_or_steps_between_them(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in Scale("", low, high, log=True).ticks(5)] == labels


def test_ticks_stay_inside_and_are_never_many() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        low = float(10 ** generator.uniform(-8, 6))
        high = low * float(1 + 10 ** generator.uniform(-1, 6))
        for log in (False, True):
            ticks = Scale("", low, high, log).ticks(6)
            assert 2 <= len(ticks) <= 13, (low, high, log)
            assert all(low * 0.998 <= value <= high * 1.002 for value, _ in ticks)
            assert len({label for _, label in ticks}) == len(ticks), (low, high, log, ticks)


def test_places_are_linear_in_the_value_or_in_its_logarithm() -> None:
    assert Scale("", 0, 10).place(2.5, 100, 200) == 125
    assert Scale("", 1, 100, log=True).place(10, 0, 80) == pytest.approx(40)
    assert math.isnan(Scale("", 1, 100, log=True).place(0, 0, 80))
    assert Scale("", 0, 4).place(1, 258, 30) == 201  # upside down, as pixels are


def test_an_axis_holds_all_finite_values_and_starts_at_zero_if_asked() -> None:
    scale = make_scale("x", [3, float("nan"), 9, float("inf")])
    assert scale.low < 3 and 9 < scale.high < 10
    assert make_scale("x", [3, 9], zero=True).low == 0
    assert make_scale("x", [0, 1e-3, 1], log=True).low == pytest.approx(1e-3, rel=0.4)


@pytest.mark.parametrize("values", [[], [float("nan")], [5, 5], [0, 0]])
@pytest.mark.parametrize("log", [False, True])
def test_an_axis_of_nothing_or_of_one_value_can_be_drawn(values: list[float], log: bool) -> None:
    scale = make_scale("x", values, log=log)
    assert scale.low < scale.high
    assert scale.ticks()


def test_a_label_has_the_digits_of_the_step() -> None:
    assert tick_label(0.3, 0.05) == "0.30"
    assert tick_label(2500, 500) == "2500"
    assert tick_label(-0.25, 0.25) == "-0.25"
