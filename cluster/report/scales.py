"""Axes: from data to pixels, with ticks at numbers that people can read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scale:
    """One axis of a chart: [low, high] in data, linear or logarithmic.

    title: what it measures, with its unit. whole: it counts, so that only whole numbers have ticks.
    """

    title: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def place(self, values: np.ndarray | float, start: float, stop: float) -> np.ndarray:
        """Pixels of data, low at `start` and high at `stop`; NaN where a log axis has no place for a value."""
        values = np.asarray(values, dtype=float)
        low, high = self.low, self.high
        if self.log:
            values = np.log10(np.where(values > 0, values, np.nan))
            low, high = math.log10(low), math.log10(high)
        return start + (values - low) / (high - low) * (stop - start)

    def ticks(self, count: int = 6) -> list[tuple[float, str]]:
        """(value, label), ascending, about `count` of them and all inside the axis."""
        values = _log_ticks(self.low, self.high, count) if self.log else _linear_ticks(self.low, self.high, count)
        if self.whole:
            values = [value for value in values if float(value).is_integer()]
        if self.log:
            far = any(value < 1e-3 or value >= 1e7 for value in values)
            return [(value, _power(value) if far else tick_label(value)) for value in values]
        step = values[1] - values[0] if len(values) > 1 else abs(values[0]) or 1.0
        return [(value, tick_label(value, step)) for value in values]


def make_scale(
    title: str, values: Iterable[float], log: bool = False, zero: bool = False, whole: bool = False
) -> Scale:
    """An axis that holds all finite values (positive ones if log) with a little room around; `zero` starts it at 0."""
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=float)
    array = array[np.isfinite(array) & ((array > 0) | (not log))]
    if not len(array):
        return Scale(title, 0.1, 1.0, log) if log else Scale(title, 0.0, 1.0, whole=whole)
    low, high = float(array.min()), float(array.max())
    if log:
        room = max((high / low) ** 0.04, 1.05)
        return Scale(title, low / room, high * room, True)
    if zero and low >= 0:
        return Scale(title, 0.0, high * 1.04 or 1.0, whole=whole)
    room = (high - low) * 0.04 or max(abs(high) * 0.1, 0.5)
    return Scale(title, low - room, high + room, whole=whole)


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten, thinned where there are many; with 2 and 5 between them where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        found = [m * 10.0**e for e in range(first, last + 1) for m in steps]
        found = [v for v in found if low * 0.999 <= v <= high * 1.001]
        if len(found) >= min(3, count):
            every = -(-len(found) // count)
            return found[::every]
    return _linear_ticks(low, high, count)


def tick_label(value: float, step: float | None = None) -> str:
    """A number beside a tick: 0.5, 20, 15k, 2M; with as many digits as the step between ticks needs."""
    if value == 0:
        return "0"
    size = abs(value)
    for bound, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= bound:
            unit = bound if suffix != "k" else 1e3
            return _fixed(value / unit, (step or value) / unit) + suffix
    return _fixed(value, step or value)


def _power(value: float) -> str:
    """1 -> 1, 0.00002 -> 2·10⁻⁵."""
    exponent = math.floor(math.log10(value) + 1e-9)
    digits = f"{value / 10.0**exponent:.4g}"
    power = "10" + str(exponent).translate(SUPERSCRIPTS)
    return digits if exponent == 0 else power if digits == "1" else f"{digits}·{power}"


def _fixed(value: float, step: float) -> str:
    digits = max(0, math.ceil(-math.log10(abs(step)) - 1e-9))
    for more in (digits, digits + 1, digits + 2):
        if abs(round(step, more) - step) <= 1e-9 * abs(step):
            return f"{value:.{more}f}"
    return f"{value:.3g}"
