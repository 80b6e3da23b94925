"""Whether a feature is more active on images made from a text than on random ones: areas under ROC curves over features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miclip_core.evaluate.auroc import aurocs, weighted_auroc
from miclip_core.evaluate.significance import LEAST_PAIRS, draw_again

POOLED_SAMPLES = 1000
"""Of features, for the interval of the pooled area."""


@dataclass(frozen=True, eq=False)
class Aurocs:
    """Areas under the ROC curve of U features; ties count one half.

    each: fp64 [U], NaN for a feature without a positive or without a negative. macro: mean of these. pooled: area of all
    activations of those features together, whatever their scales, with low and high, its 95 % interval from drawing
    features again. n: features that have one. None without any; no interval with fewer than six features.
    """

    each: np.ndarray
    macro: float | None
    pooled: float | None
    low: float | None
    high: float | None
    n: int


def compare_activations(
    positive: Sequence[Sequence[float] | np.ndarray],
    negative: Sequence[Sequence[float] | np.ndarray],
    seed: int | None = 0,
) -> Aurocs:
    """How well each feature, and all together, tell images made from their texts from random images.

    positive, negative: per feature its activations on these images, of any number. seed: of the interval, which
    None leaves out.

    Raises:
        ValueError: not the same number of features in both.
    """
    if len(positive) != len(negative):
        raise ValueError(f"found {len(positive)} features with positives and {len(negative)} with negatives")
    each = np.array([_auroc(p, n) for p, n in zip(positive, negative, strict=True)], np.float64)
    known: list[int] = np.flatnonzero(~np.isnan(each)).tolist()
    if not known:
        return Aurocs(each, None, None, None, None, 0)
    score, feature = _long([positive[f] for f in known])
    other, of_other = _long([negative[f] for f in known])
    scores, features = np.concatenate([score, other]), np.concatenate([feature, of_other])
    is_positive = np.arange(len(scores)) < len(score)
    pooled = weighted_auroc(scores, is_positive, np.ones(len(scores)))
    low, high = (None, None) if seed is None else _interval(scores, is_positive, features, len(known), seed)
    return Aurocs(each, float(each[known].mean()), pooled, low, high, len(known))


def _auroc(positive: Sequence[float] | np.ndarray, negative: Sequence[float] | np.ndarray) -> float:
    if not len(positive) or not len(negative):
        return float("nan")
    scores = np.concatenate([np.asarray(positive, np.float64), np.asarray(negative, np.float64)])
    return float(aurocs(scores[:, None], (np.arange(len(scores)) < len(positive))[:, None])[0, 0])


def _long(values: Sequence[Sequence[float] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All values in one array, and the number of the list of each."""
    flat = np.concatenate([np.asarray(some, np.float64) for some in values])
    return flat, np.repeat(np.arange(len(values)), [len(some) for some in values])


def _interval(
    scores: np.ndarray, is_positive: np.ndarray, features: np.ndarray, n: int, seed: int
) -> tuple[float | None, float | None]:
    if n < LEAST_PAIRS:
        return None, None
    rank = np.unique(scores, return_inverse=True)[1]
    found = [
        weighted_auroc(rank, is_positive, np.bincount(drawn.astype(np.int64), minlength=n)[features])
        for some in draw_again(n, POOLED_SAMPLES, seed)
        for drawn in some
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
