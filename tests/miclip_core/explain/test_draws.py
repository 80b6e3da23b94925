"""Draws are different numbers, even over all that there are, and the same for ever."""

from __future__ import annotations

import numpy as np
import pytest

from miclip_core.explain.draws import draw_distinct


def test_numbers_are_different_in_range_and_a_function_of_the_seed() -> None:
    drawn = draw_distinct(100, 60, 7, 3)
    assert len(set(drawn)) == 60 and min(drawn) >= 0 and max(drawn) < 100
    assert drawn == draw_distinct(100, 60, 7, 3) != draw_distinct(100, 60, 7, 4)
    assert draw_distinct(100, 5, 7, 3) == drawn[:5]


@pytest.mark.parametrize(("n", "count"), [(3, 3), (3, 9), (0, 2), (5, 0)])
def test_of_too_few_all_are_drawn(n: int, count: int) -> None:
    assert sorted(draw_distinct(n, count, 1)) == list(range(n))[: min(n, count)]


def test_every_number_is_as_likely_as_any_other() -> None:
    counts = np.bincount([draw_distinct(10, 1, 0, feature)[0] for feature in range(5000)], minlength=10)
    assert np.abs(counts - 500).max() < 5 * np.sqrt(450)


def test_the_draws_of_today_are_those_of_tomorrow() -> None:
    assert draw_distinct(50_000, 3, 0, 17) == [18036, 43833, 40359]
