"""Which of several texts about a feature to take: the method with the best ranks over all measures, if it passes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from miclip_core.evaluate.significance import round_off
from miclip_core.shuffle import permute

_VOTE_SEED = 12
"""Of the draw between equals, beside the number of the feature; as in the code released with the paper."""


@dataclass(frozen=True, eq=False)
class Votes:
    """The choice for U features among A methods.

    chosen: int64 [U], -1 where no method has a score. mean_rank: fp64 [U, A], mean over measures, 1 is best; NaN without a
    score. is_tie: bool [U], whether others had the same mean and it was drawn. n_methods: int64 [U], those with a score.
    """

    chosen: np.ndarray
    mean_rank: np.ndarray
    is_tie: np.ndarray
    n_methods: np.ndarray


def rank_methods(scores_UA: np.ndarray) -> np.ndarray:
    """Ranks fp64 [U, A] of methods by one measure, for each feature: 1 is the largest score, equal ones share their mean.

    A method without a score (NaN) has no rank (NaN) and pushes none down. Scores that differ by rounding alone are equal.
    """
    scores = round_off(scores_UA)
    one, other = scores[:, :, None], scores[:, None, :]
    ranks = (other > one).sum(2) + ((other == one).sum(2) + 1) / 2
    return np.where(np.isnan(scores), np.nan, ranks)


def vote(scores: Mapping[str, np.ndarray], features: Sequence[int], methods: Sequence[str]) -> Votes:
    """The method of each feature with the lowest mean rank over the measures that it has.

    scores: by measure, fp64 [U, A], NaN where there is none. Of equals one is drawn as a pure function of the feature's
    number and the names of the methods, so that the order in which they are given is no advantage.

    Raises:
        ValueError: no measure, or one whose scores are not [U, A].
    """
    shape = (len(features), len(methods))
    found = {metric: np.shape(values) for metric, values in scores.items()}
    if not found or set(found.values()) != {shape}:
        raise ValueError(f"found scores {found}; expected {shape} of every measure: features x {', '.join(methods)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of methods without any score
        mean_rank = np.nanmean([rank_methods(values) for values in scores.values()], axis=0)
    known = ~np.isnan(mean_rank)
    is_best = known & (mean_rank <= np.where(known, mean_rank, np.inf).min(1, keepdims=True, initial=np.inf) + 1e-9)
    chosen = [_draw(np.flatnonzero(best), feature, methods) for best, feature in zip(is_best, features, strict=True)]
    return Votes(np.array(chosen, np.int64), mean_rank, is_best.sum(1) > 1, known.sum(1))


def _draw(tied: np.ndarray, feature: int, methods: Sequence[str]) -> int:
    if not len(tied):
        return -1
    by_name = sorted(tied.tolist(), key=lambda method: methods[method])
    return by_name[permute(len(by_name), feature, _VOTE_SEED)[0]]


def passing(
    iou_U: np.ndarray | None,
    synthetic_U: np.ndarray | None,
    min_iou: float = 0.2,
    min_synthetic: float | None = None,
    percentile: float = 20.0,
) -> np.ndarray:
    """Whether the chosen texts of U features are good enough, bool [U]: by overlap, and by activation on made images.

    A measure that was not taken (None) is not asked for; a text without a score (NaN) of one that was does not pass.
    min_synthetic is in units of the feature's codes; None takes the percentile of all known activations in its place, as a
    number does not carry over from one SAE to another.

    Raises:
        ValueError: both measures are None.
    """
    asked = [(iou_U, min_iou)] if iou_U is not None else []
    if synthetic_U is not None:
        known = synthetic_U[~np.isnan(synthetic_U)]
        least = min_synthetic if min_synthetic is not None else np.percentile(known, percentile) if len(known) else 0.0
        asked.append((synthetic_U, float(least)))
    if not asked:
        raise ValueError("found neither overlaps nor activations; expected at least one of them to filter by")
    return np.logical_and.reduce([np.asarray(values) >= least for values, least in asked])
