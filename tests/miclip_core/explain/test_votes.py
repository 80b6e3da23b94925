"""Rank votes against SciPy's ranks and elections that can be counted by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import rankdata

from miclip_core.explain.votes import passing, rank_methods, vote

METHODS = ("informed", "steering", "topk")
RNG = np.random.default_rng(0)
SCORES = {metric: RNG.integers(0, 4, (200, 3)) / 3 for metric in ("iou", "clip", "synthetic")}


def test_ranks_are_scipys_best_first_and_sum_to_six() -> None:
    for scores in SCORES.values():
        ranks = rank_methods(scores)
        assert np.array_equal(ranks, rankdata(-scores, axis=1)) and (ranks.sum(1) == 6).all()


def test_a_method_without_a_score_has_no_rank_and_pushes_none_down() -> None:
    ranks = rank_methods(np.array([[0.1, np.nan, 0.3], [np.nan, 0.2, np.nan]]))
    assert np.array_equal(ranks, [[2, np.nan, 1], [np.nan, 1, np.nan]], equal_nan=True)


def test_scores_that_differ_by_rounding_alone_share_their_rank() -> None:
    for size in (1.0, 1e-12):
        ranks = rank_methods(
            size * np.array([[0.1 + 0.2, 0.3, 0.1], [1 / 3 - 1 / 5, 0.13, 2 / 15], [0.3, 0.3 + 1e-6, 0]])
        )
        assert ranks.tolist() == [[1.5, 1.5, 3], [1.5, 3, 1.5], [2, 1, 3]]


def test_the_lowest_sum_of_ranks_wins_as_a_loop_finds_it() -> None:
    votes = vote(SCORES, range(200), METHODS)
    ties = 0
    for f in range(200):
        sums = sum(rankdata(-SCORES[metric][f]) for metric in SCORES)
        winners = [a for a in range(3) if sums[a] == min(sums)]
        ties += len(winners) > 1
        assert votes.chosen[f] in winners and votes.is_tie[f] == (len(winners) > 1)
        assert votes.mean_rank[f] == pytest.approx(np.array(sums) / 3) and votes.n_methods[f] == 3
    assert 10 < ties < 190


def test_who_is_best_by_every_measure_wins() -> None:
    best = {metric: np.where(np.arange(3) == 1, 5, scores) for metric, scores in SCORES.items()}
    votes = vote(best, range(200), METHODS)
    assert (votes.chosen == 1).all() and (votes.mean_rank[:, 1] == 1).all() and not votes.is_tie.any()


def test_no_order_of_methods_and_of_features_changes_who_is_chosen() -> None:
    chosen = [METHODS[a] for a in vote(SCORES, range(200), METHODS).chosen]
    for order in ([2, 0, 1], [1, 0, 2], [2, 1, 0]):
        turned = {metric: scores[::-1][:, order] for metric, scores in SCORES.items()}
        names = [METHODS[a] for a in order]
        again = [names[a] for a in vote(turned, range(199, -1, -1), names).chosen]
        assert again[::-1] == chosen


def test_ties_are_drawn_evenly_and_by_the_number_of_the_feature_alone() -> None:
    flat = {"iou": np.zeros((600, 3))}
    votes = vote(flat, range(600), METHODS)
    counts = Counter(votes.chosen.tolist())
    assert votes.is_tie.all() and all(150 < counts[a] < 250 for a in range(3))
    assert np.array_equal(vote({"iou": np.zeros((300, 3))}, range(300, 600), METHODS).chosen, votes.chosen[300:])


def test_the_mean_is_over_the_measures_that_a_method_has() -> None:
    scores = {"iou": np.array([[0.3, 0.2], [np.nan, 0.1], [np.nan, np.nan]])}
    scores["clip"] = np.array([[0.1, np.nan], [np.nan, 0.3], [np.nan, np.nan]])
    votes = vote(scores, [4, 5, 6], ["a", "b"])
    assert votes.chosen.tolist() == [0, 1, -1] and votes.n_methods.tolist() == [2, 1, 0]
    assert np.array_equal(votes.mean_rank, [[1, 2], [np.nan, 1], [np.nan, np.nan]], equal_nan=True)
    assert votes.is_tie.tolist() == [False, False, False]


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'iou': \(200, 3\)"):
        vote(SCORES, range(100), METHODS)
    with pytest.raises(ValueError, match="of every measure"):
        vote({}, range(2), METHODS)


def test_a_text_passes_by_both_measures() -> None:
    iou = np.array([0.2, 0.5, 0.1, np.nan, 0.9])
    synthetic = np.array([0.3, 0.1, 5.0, 5.0, np.nan])
    assert passing(iou, synthetic, 0.2, 0.3).tolist() == [True, False, False, False, False]
    assert passing(iou, None, 0.2).tolist() == [True, True, False, False, True]
    assert passing(None, synthetic, min_synthetic=0.3).tolist() == [True, False, True, True, False]
    with pytest.raises(ValueError, match="neither"):
        passing(None, None)


def test_a_percentile_drops_that_share_of_what_is_known() -> None:
    activation = np.append(RNG.permutation(np.arange(100.0)), np.nan)
    passed = passing(None, activation, percentile=30)
    assert passed.sum() == 70 and activation[passed].min() == 30
    assert not passing(None, np.array([np.nan])).any()
