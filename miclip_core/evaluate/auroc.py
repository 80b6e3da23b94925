"""Areas under ROC curves: of many scores for many classes at once, and of items that count several times."""

from __future__ import annotations

import numpy as np


def aurocs(scores_NU: np.ndarray, positive_NC: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (C, U) of every unit for every class; tied scores count one half.

    By the rank sum of Mann and Whitney (1947), which it is a scaling of.

    Raises:
        ValueError: a class has no positive or no negative.
    """
    n, n_positive_C = len(scores_NU), positive_NC.sum(0)
    if not ((n_positive_C > 0) & (n_positive_C < n)).all():
        raise ValueError(
            f"positives per class are {n_positive_C.tolist()} of {n}: each needs some and not all; use more images"
        )
    sums_CU = positive_NC.T.astype(np.float64) @ _mean_ranks(scores_NU)
    return (sums_CU / n_positive_C[:, None] - (n_positive_C[:, None] + 1) / 2) / (n - n_positive_C)[:, None]


def weighted_auroc(score_N: np.ndarray, positive_N: np.ndarray, weight_N: np.ndarray) -> float:
    """AUROC where every item counts `weight` times; NaN if either side is empty."""
    _, group_N = np.unique(score_N, return_inverse=True)
    up = np.bincount(group_N, weight_N * positive_N)
    down = np.bincount(group_N, weight_N * ~positive_N)
    pairs = up.sum() * down.sum()
    return float((up * (np.cumsum(down) - down / 2)).sum() / pairs) if pairs else float("nan")


def _mean_ranks(scores_NU: np.ndarray) -> np.ndarray:
    """Ranks 1..N down every column, ties sharing their mean."""
    ranks_NU = np.empty(scores_NU.shape)
    for unit in range(scores_NU.shape[1]):
        _, group_N, count = np.unique(scores_NU[:, unit], return_inverse=True, return_counts=True)
        ranks_NU[:, unit] = (np.cumsum(count) - (count - 1) / 2)[group_N]
    return ranks_NU
