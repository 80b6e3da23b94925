"""The choice of a strength, on grids whose best one can be seen."""

from __future__ import annotations

import pytest

from miclip_core.explain.alphas import compare_alphas
from schemas.errors import NoAlpha


def test_the_best_mean_is_chosen_and_everything_is_counted() -> None:
    found = compare_alphas(
        {
            2.0: [("Red", 0.6), ("red", 0.2), (None, None), ("Blue", 0.4)],
            0.0: [("White", 0.1), ("White", 0.1), ("White", 0.1), ("White", 0.2)],
        }
    )
    nothing, best = found
    assert (nothing.alpha, nothing.is_chosen, best.alpha, best.is_chosen) == (0, False, 2, True)
    assert (nothing.mean_iou, nothing.distinct, nothing.n, nothing.n_empty) == (pytest.approx(0.125), 0.25, 4, 0)
    assert (best.mean_iou, best.distinct, best.n, best.n_empty) == (pytest.approx(0.4), pytest.approx(2 / 3), 3, 1)
    assert best.sd_iou == pytest.approx(0.2)


def test_of_equal_means_the_one_nearest_to_zero_is_chosen_and_the_positive_of_two() -> None:
    same = [("A", 0.25), ("B", 0.75)]
    chosen = [score.alpha for score in compare_alphas(dict.fromkeys((4, -1, 1, -2), same)) if score.is_chosen]
    assert chosen == [1]


def test_an_alpha_that_is_best_by_failing_at_most_features_is_not_chosen() -> None:
    weak = [("A", 0.1)] * 5
    strong = [("B", 0.9)] * 2 + [(None, None)] * 3
    found = compare_alphas({1.0: weak, 8.0: strong})
    assert [score.is_chosen for score in found] == [True, False]
    assert [score.is_chosen for score in compare_alphas({1.0: weak, 8.0: [*strong, ("B", 0.9)]})] == [False, True]


def test_a_text_whose_overlap_is_unknown_counts_as_a_text_and_not_as_zero() -> None:
    (found,) = compare_alphas({1.0: [("A", None), ("B", 0.5)]})
    assert (found.mean_iou, found.sd_iou, found.n, found.n_empty, found.distinct) == (0.5, None, 1, 0, 1.0)


def test_a_grid_without_a_scored_text_is_refused() -> None:
    with pytest.raises(NoAlpha, match=r"none of 2 texts with alphas 0\.5, 2"):
        compare_alphas({2.0: [(None, None)], 0.5: [("A", None)]})
