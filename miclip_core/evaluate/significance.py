"""Whether two methods differ on the same units or classes: paired tests, bootstrap intervals and Holm's correction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

LEAST_PAIRS = 6
"""With fewer no signed-rank test of two sides can reach p < .05 (2 / 2^5 = .0625), so nothing is tested."""
EXACT_PAIRS = 50
"""Up to so many differences that are not zero their null distribution is counted out; of more it is taken as normal."""
SAMPLES = 10_000
_CELLS = 2**20  # draws held at once

Test = Literal["mcnemar_exact", "wilcoxon_exact", "wilcoxon_normal"]


@dataclass(frozen=True)
class Comparison:
    """Method a against method b on the same units (or classes).

    n_pairs: units for which both have a value. difference: mean of a - b over them, None without any. low, high: its 95 %
    bootstrap interval. p_value: of two sides, not corrected. All but the first two are None below LEAST_PAIRS pairs.
    """

    n_pairs: int
    difference: float | None
    low: float | None = None
    high: float | None = None
    test: Test | None = None
    p_value: float | None = None


def compare_correct(a_U: ArrayLike, b_U: ArrayLike, seed: int = 0) -> Comparison:
    """Whether a is right (bool [U]) on more units than b, by the exact McNemar test.

    Raises:
        ValueError: not one value of each per unit.
    """
    a, b = np.asarray(a_U, bool), np.asarray(b_U, bool)
    _check_pairs(a, b)
    p_value = mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))
    return _compare(a.astype(np.float64) - b, "mcnemar_exact", p_value, seed)


def compare_scores(a_U: ArrayLike, b_U: ArrayLike, seed: int = 0) -> Comparison:
    """Whether the scores of a (float [U]) are above those of b, by Wilcoxon's signed ranks.

    Units without a score (NaN) of either are left out. Changes in accuracy are compared alike, with classes for units.

    Raises:
        ValueError: not one value of each per unit.
    """
    a, b = np.asarray(a_U, np.float64), np.asarray(b_U, np.float64)
    _check_pairs(a, b)
    known = ~(np.isnan(a) | np.isnan(b))
    differences = a[known] - b[known]
    test, p_value = signed_ranks(differences)
    return _compare(differences, test, p_value, seed)


def _check_pairs(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"found values of shape {a.shape} and {b.shape}; expected one of each method per unit")


def _compare(differences: np.ndarray, test: Test, p_value: float, seed: int) -> Comparison:
    n = len(differences)
    mean = float(differences.mean()) if n else None
    if n < LEAST_PAIRS:
        return Comparison(n, mean)
    low, high = bootstrap_interval(differences, seed)
    return Comparison(n, mean, low, high, test, p_value)


def mcnemar(only_a: int, only_b: int) -> float:
    """The p value of two sides when a alone was right on so many units and b alone on so many (McNemar 1947).

    Exact: under the null each of those units is a fair coin. 1 where there are none.
    """
    from scipy.stats import binomtest

    n = only_a + only_b
    return float(binomtest(only_a, n, 0.5).pvalue) if n else 1.0


def signed_ranks(differences_U: ArrayLike) -> tuple[Test, float]:
    """Wilcoxon's signed-rank test (1945) of differences around zero: how its null was had, and the p value of two sides.

    Zeros are left out, as in the original; 1 if nothing remains. Equal sizes share their mean rank; what differs by less
    than 1e-9 of the largest is equal, because shares such as 1/3 - 1/5 and 2/15 are not to be told apart by rounding. Up to
    EXACT_PAIRS differences all 2^n signs are counted, with those very ranks; beyond, the normal distribution with the
    variance that ties leave.
    """
    from scipy.stats import rankdata, wilcoxon

    differences = _told_apart(differences_U)
    if len(differences) > EXACT_PAIRS:
        return "wilcoxon_normal", float(wilcoxon(differences, correction=False).pvalue)
    ranks = np.rint(2 * rankdata(np.abs(differences))).astype(np.int64)  # doubled, so that mean ranks are whole
    ways = np.zeros(int(ranks.sum()) + 1)  # of all signs, those with this sum of positive ranks; 2^50 is exact
    ways[0] = 1
    for rank in ranks:
        ways[rank:] = ways[rank:] + ways[: len(ways) - rank]
    positive = int(ranks[differences > 0].sum())
    tail = min(ways[: positive + 1].sum(), ways[positive:].sum())
    return "wilcoxon_exact", min(1.0, 2 * float(tail) / 2 ** len(ranks))


def rank_sum(differences_U: ArrayLike) -> float:
    """The statistic of `signed_ranks`: the sum of the ranks of positive differences."""
    from scipy.stats import rankdata

    differences = _told_apart(differences_U)
    return float(rankdata(np.abs(differences))[differences > 0].sum())


def _told_apart(differences_U: ArrayLike) -> np.ndarray:
    """Those that are not zero, rounded so that equal sizes are equal."""
    differences = round_off(differences_U)
    return differences[differences != 0]


def round_off(values_RN: ArrayLike) -> np.ndarray:
    """Each row [N] of values in units of its largest size and to nine digits; NaN stays NaN.

    What differs by rounding alone, as 0.1 + 0.2 and 0.3, or 1/3 - 1/5 and 2/15, is then equal.
    """
    values = np.asarray(values_RN, np.float64)
    largest = np.nan_to_num(np.abs(values)).max(-1, initial=0, keepdims=True)
    return np.around(values / np.where(largest > 0, largest, 1), 9)


def bootstrap_interval(
    values_U: ArrayLike, seed: int = 0, samples: int = SAMPLES, level: float = 0.95
) -> tuple[float, float]:
    """Where the mean of values [U] lies when units are drawn again with replacement: the middle `level` of so many draws.

    The percentile interval of Efron (1979). A pure function of its arguments.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    values = np.asarray(values_U, np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"{len(values)} values, {int((~np.isfinite(values)).sum())} not finite; leave those out first")
    means = [values[drawn].mean(1) for drawn in draw_again(len(values), samples, seed)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def draw_again(n: int, samples: int = SAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Which of n units each of so many samples draws with replacement: numbers uint64 [S, n], some samples at a time.

    A pure function of its arguments: numpy promises the raw bits of a generator for good, but not the integers that it
    makes of them.
    """
    bits = np.random.PCG64(seed)
    for first in range(0, samples, step := max(1, _CELLS // n)):
        raw = bits.random_raw(min(step, samples - first) * n)
        yield (((raw >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)).reshape(-1, n)


def correct_by_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values of one table, so adjusted that those below .05 are wrong anywhere with a chance below .05 (Holm 1979).

    The i-th smallest of n becomes the largest so far of (n - i + 1) p, at most 1. None stays None and counts for nothing.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for smaller, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - smaller) * p))
        adjusted[place] = largest
    return adjusted


def spread_over_seeds(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds, with n - 1 below the line; None for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
