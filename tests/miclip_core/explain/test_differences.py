"""Tests between methods against SciPy, and methods that are as different as they are made."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from miclip_core.explain.differences import MethodTest, compare_methods, correct_tests

METHODS = ("topk", "steering", "informed")
RNG = np.random.default_rng(1)
BASE = RNG.gamma(1, 0.1, 300)
SCORES = np.stack([BASE, BASE + RNG.normal(0, 0.02, 300), BASE + 0.1 + RNG.normal(0, 0.02, 300)], 1)
SCORES[:40, 0] = np.nan
SCORES[20:30, 2] = np.nan


def found(tests: list[MethodTest], kind: str, a: str, b: str = "") -> MethodTest:
    (one,) = (test for test in tests if (test.test, test.method_a, test.method_b) == (kind, a, b))
    return one


TESTS = correct_tests(compare_methods(SCORES, METHODS))


def test_every_method_every_ordered_pair_and_every_pair_is_tested_once() -> None:
    kinds = [test.test for test in TESTS]
    assert {kind: kinds.count(kind) for kind in kinds} == {"shapiro": 3, "mann_whitney": 6, "wilcoxon": 3}
    assert len({(test.test, test.method_a, test.method_b) for test in TESTS}) == 12


def test_unpaired_and_normality_tests_are_scipys_on_what_each_method_has() -> None:
    columns = {method: column[~np.isnan(column)] for method, column in zip(METHODS, SCORES.T, strict=True)}
    for a in METHODS:
        shapiro = found(TESTS, "shapiro", a)
        assert (shapiro.statistic, shapiro.p) == pytest.approx(tuple(stats.shapiro(columns[a])))
        assert shapiro.n == len(columns[a]) and shapiro.p is not None and shapiro.p < 1e-6
        for b in set(METHODS) - {a}:
            test = found(TESTS, "mann_whitney", a, b)
            expected = stats.mannwhitneyu(columns[a], columns[b], alternative="greater")
            assert (test.statistic, test.p) == pytest.approx(tuple(expected))
            assert test.n == min(len(columns[a]), len(columns[b]))


def test_u_of_both_directions_sums_to_all_pairs() -> None:
    there, back = found(TESTS, "mann_whitney", "topk", "informed"), found(TESTS, "mann_whitney", "informed", "topk")
    assert there.statistic is not None and back.statistic is not None
    assert there.statistic + back.statistic == 260 * 290


def test_the_paired_test_is_of_common_features_and_scipys() -> None:
    test = found(TESTS, "wilcoxon", "topk", "informed")
    common = ~np.isnan(SCORES[:, 0]) & ~np.isnan(SCORES[:, 2])
    difference = SCORES[common, 0] - SCORES[common, 2]
    expected = stats.wilcoxon(difference, correction=False)
    assert test.n == common.sum() == 260 and test.p == pytest.approx(expected.pvalue)
    assert test.statistic == pytest.approx(stats.rankdata(np.abs(difference))[difference > 0].sum())
    assert stats.wilcoxon(difference, alternative="greater").statistic == test.statistic


def test_holm_corrects_each_kind_by_itself() -> None:
    """By hand: the smallest p times how many of its kind there are, the next times one less, and never below the one before."""
    given = [
        ("shapiro", 0.01),
        ("mann_whitney", 0.02),
        ("mann_whitney", 0.01),
        ("mann_whitney", 0.019),
        ("wilcoxon", 0.04),
    ]
    corrected = correct_tests([MethodTest("a", "b", test, 9, 1.0, p) for test, p in given])
    assert [(test.test, test.p) for test in corrected] == given
    assert [test.p_holm for test in corrected] == pytest.approx([0.01, 0.038, 0.03, 0.038, 0.04])


def test_few_or_equal_scores_are_not_tested() -> None:
    few = compare_methods(SCORES[45:50], METHODS)
    assert all(test.p is None and test.statistic is None and test.n == 5 for test in few)
    flat = correct_tests(compare_methods(np.full((10, 2), 0.5), ["a", "b"]))
    assert [(test.test, test.p, test.p_holm) for test in flat] == [
        ("shapiro", None, None), ("shapiro", None, None), ("mann_whitney", None, None), ("mann_whitney", None, None),
        ("wilcoxon", 1.0, 1.0),
    ]  # fmt: skip


def test_many_scores_are_tested_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    many = compare_methods(RNG.gamma(2, 1, (6000, 1)), ["a"])
    assert many[0].n == 6000 and many[0].p is not None and not len(recwarn)


def test_columns_without_a_method_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(300, 3\) for 2 methods"):
        compare_methods(SCORES, METHODS[:2])
