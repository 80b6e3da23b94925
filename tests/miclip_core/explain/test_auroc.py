"""Areas over features against counted pairs, scikit-learn and SciPy's U."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from miclip_core.explain.auroc import compare_activations

RNG = np.random.default_rng(0)
POSITIVE = [RNG.normal(f % 3, 1, 4).round(1) for f in range(12)]
NEGATIVE = [RNG.normal(0, 1 + f % 2, 3 + f % 2).round(1) for f in range(12)]


def test_each_feature_is_its_share_of_pairs_in_order_and_macro_their_mean() -> None:
    found = compare_activations([[2.0, 1.0], [0.0]], [[1.0, 0.0], [3.0, 4.0]])
    assert found.each.tolist() == [(1 + 1 + 0.5 + 1) / 4, 0.0]
    assert found.macro == 0.4375 and found.n == 2
    assert found.pooled == (2 + 1.5 + 0.5) / 12  # 2 > 1, 0; 1 > 0 and = 1; 0 = 0


def test_pooled_is_one_curve_of_all_activations_and_macro_the_mean_of_scikit_learns() -> None:
    found = compare_activations(POSITIVE, NEGATIVE)
    each = [roc_auc_score([1] * len(p) + [0] * len(n), [*p, *n]) for p, n in zip(POSITIVE, NEGATIVE, strict=True)]
    assert found.each == pytest.approx(each) and found.macro == pytest.approx(np.mean(each))
    positive, negative = np.concatenate(POSITIVE), np.concatenate(NEGATIVE)
    assert found.pooled == pytest.approx(mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))
    assert found.macro != pytest.approx(found.pooled, abs=1e-3)


def test_they_are_one_for_one_feature_and_a_half_for_equal_lists() -> None:
    for p, n in zip(POSITIVE, NEGATIVE, strict=True):
        one = compare_activations([p], [n])
        assert one.pooled == pytest.approx(one.macro, abs=1e-12) and one.low is None
    same = compare_activations(POSITIVE, POSITIVE)
    assert same.macro == 0.5 and same.pooled == pytest.approx(0.5, abs=1e-12)


def test_a_feature_without_images_of_both_kinds_counts_for_nothing() -> None:
    found = compare_activations([[1.0], [], [5.0]], [[0.0], [100.0], []])
    assert np.isnan(found.each[1:]).all() and (found.macro, found.pooled, found.n) == (1, 1, 1)
    none = compare_activations([[]], [[1.0]])
    assert (none.macro, none.pooled, none.n) == (None, None, 0)


def test_the_interval_of_the_pooled_area_is_of_features_drawn_again() -> None:
    """The standard deviation of the area of features drawn by numpy, each with all its images."""
    found = compare_activations(POSITIVE, NEGATIVE, seed=3)
    draws = np.random.default_rng(9).integers(0, 12, (2000, 12))
    areas = []
    for drawn in draws:
        p, n = np.concatenate([POSITIVE[f] for f in drawn]), np.concatenate([NEGATIVE[f] for f in drawn])
        areas.append(((p[:, None] > n) + 0.5 * (p[:, None] == n)).mean())
    assert found.low is not None and found.high is not None and found.pooled is not None
    assert found.low < found.pooled < found.high
    assert (found.low, found.high) == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.03)
    again = compare_activations(POSITIVE, NEGATIVE, seed=3)
    assert (again.low, again.high) == (found.low, found.high)
    without = compare_activations(POSITIVE, NEGATIVE, seed=None)
    assert (without.low, without.high, without.pooled) == (None, None, found.pooled)


def test_lists_of_different_features_are_refused() -> None:
    with pytest.raises(ValueError, match="1 features with positives and 2"):
        compare_activations([[1.0]], [[1.0], [2.0]])
