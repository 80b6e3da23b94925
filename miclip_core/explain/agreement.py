"""Whether explanations are better where two methods say the same: scores of features whose texts are alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreed:
    """The mean score of the n features whose texts have at least the cosine `threshold`; None without one."""

    threshold: float
    n: int
    mean: float | None


def agreeing(cosine_U: np.ndarray, thresholds: Sequence[float]) -> Iterator[tuple[float, np.ndarray]]:
    """For each threshold the features, bool [U], whose two texts have at least that cosine.

    cosine: as `row_cosines` of embeddings gives it, NaN for a feature that lacks one of the texts, which agrees nowhere.
    """
    for threshold in thresholds:
        yield threshold, np.asarray(cosine_U) >= threshold


def score_by_agreement(cosine_U: np.ndarray, score_U: np.ndarray, thresholds: Sequence[float]) -> list[Agreed]:
    """Mean score of agreeing features for each threshold; scores that are NaN are left out and not counted.

    Raises:
        ValueError: not one score per cosine.
    """
    score_U = np.asarray(score_U, np.float64)
    if np.shape(cosine_U) != score_U.shape:
        raise ValueError(
            f"found {np.shape(cosine_U)} cosines and {score_U.shape} scores; expected one of each per feature"
        )
    kept = [(threshold, score_U[agree & ~np.isnan(score_U)]) for threshold, agree in agreeing(cosine_U, thresholds)]
    return [Agreed(threshold, len(some), float(some.mean()) if len(some) else None) for threshold, some in kept]
