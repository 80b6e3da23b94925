"""Fewer numbers that say the same: what a chart draws of a line of any length, and which points lie on a frontier."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

MOST_POINTS = 240
"""Points of one line; more are taken together, so that a million steps make no larger page."""


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values of a window around each, about a fiftieth of the line wide; it narrows at the start, where lines are steep."""
    half = len(values) // 100
    if half == 0:
        return values
    there = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(there, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(there)])
    middle = np.arange(len(values))
    low = middle - np.minimum(half, middle)
    high = np.minimum(middle + np.minimum(half, middle) + 1, len(values))
    n = counts[high] - counts[low]
    return np.where(n > 0, (sums[high] - sums[low]) / np.maximum(n, 1), np.nan)


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most so many points of a line, evenly taken, with both ends."""
    if len(x) <= most:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, most).round().astype(int))
    return x[kept], y[kept]


def thin_extremes(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest of each stretch, in order, so that no spike is lost."""
    if len(x) <= 2 * most:
        return x, y
    bounds = np.linspace(0, len(x), most + 1).astype(int)
    kept: list[int] = []
    for start, stop in itertools.pairwise(bounds):
        part = y[start:stop]
        if np.isfinite(part).any():
            kept += sorted({start + int(np.nanargmin(part)), start + int(np.nanargmax(part))})
    return x[kept], y[kept]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points for which no other is at most as large in both and smaller in one."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    best: list[int] = []
    lowest = math.inf
    for i in order:
        if points[i][1] < lowest or (best and points[i] == points[best[-1]]):
            best.append(i)
            lowest = points[i][1]
    return best
