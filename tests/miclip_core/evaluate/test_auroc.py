"""Areas under ROC curves against the definition, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest

from miclip_core.evaluate.auroc import aurocs, weighted_auroc


def count_pairs(score: np.ndarray, positive: np.ndarray) -> float:
    """The definition: the share of (positive, negative) pairs in the right order, ties one half."""
    wins = [float(p > n) + 0.5 * (p == n) for p in score[positive] for n in score[~positive]]
    return float(np.mean(wins))


def test_auroc_equals_counting_pairs_with_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (60, 5)).astype(np.float32)
    positive = rng.random((60, 3)) < [0.2, 0.5, 0.9]
    wanted = [[count_pairs(scores[:, u], positive[:, c]) for u in range(5)] for c in range(3)]
    np.testing.assert_allclose(aurocs(scores, positive), wanted, atol=1e-12)


def test_auroc_by_hand():
    scores = np.array([[0.0], [1.0], [1.0], [3.0]])
    positive = np.array([[False], [True], [False], [True]])
    assert aurocs(scores, positive)[0, 0] == (1 + 0.5 + 1 + 1) / 4


def test_a_weight_counts_an_item_so_many_times():
    rng = np.random.default_rng(1)
    score, positive, weight = rng.integers(0, 5, 30), rng.random(30) < 0.4, rng.integers(0, 4, 30)
    again = np.repeat(np.arange(30), weight)
    assert weighted_auroc(score, positive, weight) == pytest.approx(count_pairs(score[again], positive[again]))


def test_a_class_without_positives_or_negatives_is_refused():
    with pytest.raises(ValueError, match="use more images"):
        aurocs(np.zeros((4, 1)), np.zeros((4, 1), bool))
