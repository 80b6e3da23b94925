"""One number for many features: mean, spread and interval of a score, and the same of a share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from miclip_core.evaluate.significance import LEAST_PAIRS, bootstrap_interval

_Z = 1.959963984540054  # of the normal distribution, 95 % of which lies within


@dataclass(frozen=True)
class Summary:
    """Mean over n features, their standard deviation (n - 1 below the line), and the mean's 95 % interval; None if unknown."""

    n: int
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None


def summarise(values_U: ArrayLike, seed: int = 0) -> Summary:
    """Of scores [U], of which NaN are left out: the interval is bootstrapped over features, and there from six on."""
    known = _known(values_U)
    interval = bootstrap_interval(known, seed) if len(known) >= LEAST_PAIRS else (None, None)
    return Summary(len(known), *_moments(known), *interval)


def summarise_share(hits_U: ArrayLike) -> Summary:
    """Of hits (1) and misses (0) [U], of which NaN are left out: Wilson's interval (1927), which stays within 0 and 1."""
    known = _known(hits_U)
    n = len(known)
    if not n:
        return Summary(0)
    share = float(known.mean())
    middle, width = share + _Z**2 / (2 * n), _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    low, high = ((middle + sign * width) / (1 + _Z**2 / n) for sign in (-1, 1))
    return Summary(n, *_moments(known), max(0.0, low), min(1.0, high))


def _known(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[~np.isnan(values)]


def _moments(known: np.ndarray) -> tuple[float | None, float | None]:
    mean = float(known.mean()) if len(known) else None
    return mean, float(known.std(ddof=1)) if len(known) > 1 else None
