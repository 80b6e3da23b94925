"""Paired tests against coins counted by hand, all signs in a loop, and scipy where it is exact."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from miclip_core.evaluate.significance import (
    EXACT_PAIRS,
    bootstrap_interval,
    compare_correct,
    compare_scores,
    correct_by_holm,
    mcnemar,
    signed_ranks,
    spread_over_seeds,
)

# ---------------------------------------------------------------- McNemar


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(6, 0, 2 / 64), (5, 1, 2 * 7 / 64), (3, 3, 1.0), (0, 0, 1.0), (0, 1, 1.0)]
)
def test_mcnemar_is_the_chance_of_such_fair_coins(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-12)
    assert mcnemar(only_b, only_a) == pytest.approx(p, rel=1e-12)


def test_mcnemar_equals_the_sum_of_binomials_and_knows_only_units_that_differ() -> None:
    a = np.array([1] * 30 + [1] * 14 + [0] * 5 + [0] * 20, bool)
    b = np.array([1] * 30 + [0] * 14 + [1] * 5 + [0] * 20, bool)
    found = compare_correct(a, b)
    expected = 2 * sum(math.comb(19, k) for k in range(6)) / 2**19
    assert found.test == "mcnemar_exact" and found.n_pairs == 69
    assert found.p_value == pytest.approx(expected, rel=1e-12)
    assert compare_correct(a[30:49], b[30:49]).p_value == found.p_value
    assert found.difference == pytest.approx(9 / 69)
    assert found.low is not None and found.high is not None and found.low < 9 / 69 < found.high


# ---------------------------------------------------------------- signed ranks


def p_by_all_signs(differences: list[float]) -> float:
    """Two-sided p over all 2^n signs, the ranks counted by comparing each with each."""
    sizes = [abs(d) for d in differences if d]
    ranks = [sum(s < size for s in sizes) + (1 + sum(s == size for s in sizes)) / 2 for size in sizes]
    seen = sum(rank for rank, d in zip(ranks, [d for d in differences if d]) if d > 0)
    sums = [
        sum(rank for rank, sign in zip(ranks, signs) if sign) for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    low, high = sum(s <= seen for s in sums), sum(s >= seen for s in sums)
    return min(1.0, 2 * min(low, high) / len(sums))


@pytest.mark.parametrize(
    "differences",
    [
        [1, 2, 3, 4, 5, 6],
        [1, 2, 3, 4, 5, -6],
        [1, 1, 1, -1, 2, 2, 0, 0, -3],
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, -0.5],
        [-1, 1, -2, 2],
        [3],
    ],
)
def test_few_differences_are_counted_over_all_signs_with_ties_and_zeros(differences: list[float]) -> None:
    test, p = signed_ranks(differences)
    assert test == "wilcoxon_exact"
    assert p == pytest.approx(p_by_all_signs(differences), rel=1e-12)


def test_six_differences_of_one_sign_have_two_of_sixty_four_signs() -> None:
    assert signed_ranks([1, 2, 3, 4, 5, 6])[1] == 2 / 64 == signed_ranks([-7] * 6)[1]


def test_without_ties_scipy_agrees_up_to_fifty_and_is_used_beyond() -> None:
    values = np.random.default_rng(0).normal(0.2, 1, 80)
    for n in (7, 20, EXACT_PAIRS):
        assert signed_ranks(values[:n])[1] == pytest.approx(stats.wilcoxon(values[:n], method="exact").pvalue, rel=1e-9)
    test, p = signed_ranks(values)
    ranks = np.abs(values).argsort().argsort() + 1
    z = (ranks[values > 0].sum() - 80 * 81 / 4) / math.sqrt(80 * 81 * 161 / 24)
    assert test == "wilcoxon_normal"
    assert p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=1e-9)


def test_the_normal_that_takes_over_is_close_to_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same fifty differences, many of them tied."""
    values = np.round(np.random.default_rng(1).normal(0.3, 1, 60), 1)
    values = values[values != 0][:EXACT_PAIRS]
    exact = signed_ranks(values)
    monkeypatch.setattr("miclip_core.evaluate.significance.EXACT_PAIRS", 10)
    normal = signed_ranks(values)
    assert (exact[0], normal[0]) == ("wilcoxon_exact", "wilcoxon_normal")
    assert 0.001 < exact[1] < 0.5
    assert normal[1] == pytest.approx(exact[1], rel=0.1)


def test_rounding_neither_breaks_a_tie_nor_makes_a_difference_of_none() -> None:
    """Shares of classes with different numbers of images: 1/3 - 1/5 is 2/15, and 0.1 + 0.2 - 0.3 is nothing."""
    rounded = [1 / 3 - 1 / 5, 2 / 15, -(1 / 5 - 1 / 15), 3 / 15, 4 / 15, 4 / 15, 0.1 + 0.2 - 0.3]
    assert len(set(np.abs(rounded))) > 4
    assert signed_ranks(rounded) == signed_ranks([2, 2, -2, 3, 4, 4])
    assert signed_ranks([d * 1e-12 for d in rounded]) == signed_ranks(rounded)


def test_zeros_alone_say_nothing() -> None:
    assert signed_ranks([0.0] * 10) == ("wilcoxon_exact", 1.0)


def test_units_without_a_score_are_left_out_and_too_few_pairs_give_no_verdict() -> None:
    a = np.array([0.9, 0.8, 0.7, 0.9, 0.8, 0.6, np.nan])
    b = np.array([0.1, 0.2, 0.3, 0.4, 0.5, np.nan, 0.1])
    few = compare_scores(a, b)
    assert (few.n_pairs, few.test, few.p_value, few.low, few.high) == (5, None, None, None, None)
    assert few.difference == pytest.approx((0.8 + 0.6 + 0.4 + 0.5 + 0.3) / 5)
    b[5] = 0.5
    enough = compare_scores(a, b)
    assert (enough.n_pairs, enough.test, enough.p_value) == (6, "wilcoxon_exact", 2 / 64)
    assert compare_scores([], []).difference is None
    assert compare_correct([True] * 5, [False] * 5).p_value is None


def test_values_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        compare_scores([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="one of each method per unit"):
        compare_correct([[True]], [[True]])


# ---------------------------------------------------------------- bootstrap


def test_the_interval_is_that_of_the_normal_for_many_values() -> None:
    values = np.random.default_rng(0).normal(3, 2, 2000)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_the_interval_of_two_values_is_the_binomial() -> None:
    """Means of draws from {0, 1} are 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    assert bootstrap_interval([0, 1]) == (0, 1)
    assert bootstrap_interval([0, 1], level=0.4) == (0.5, 0.5)
    assert bootstrap_interval([7, 7, 7]) == (7, 7)


def test_every_unit_is_drawn_alike_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=30)
    whole = bootstrap_interval(values, seed=5)
    monkeypatch.setattr("miclip_core.evaluate.significance._CELLS", 100)
    assert bootstrap_interval(values, seed=5) == whole
    assert bootstrap_interval(values, seed=6) != whole
    for unit in range(4):  # the mean of one unit's indicator is Binomial(4, 1/4) / 4
        low, high = bootstrap_interval(np.eye(4)[unit], level=0.5)
        assert (low, high) == (0, 0.5)


def test_a_draw_is_the_upper_half_of_the_raw_bits_as_a_fraction_of_the_units() -> None:
    """Numpy promises the raw bits for good and nothing else, so that nothing else may be used."""
    values, bits = [k * k for k in range(10)], np.random.PCG64(3)
    means = sorted(
        sum(values[int(bits.random_raw()) // 2**32 * 10 // 2**32] for _ in range(10)) / 10 for _ in range(41)
    )
    assert bootstrap_interval(values, seed=3, samples=41) == pytest.approx((means[1], means[39]), rel=1e-12)


def test_a_mean_that_does_not_exist_has_no_interval() -> None:
    for values in ([], [1, np.nan], [np.inf]):
        with pytest.raises(ValueError, match="not finite"):
            bootstrap_interval(values)


# ---------------------------------------------------------------- Holm


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert correct_by_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_by_holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert correct_by_holm([None, 0.02, None, 0.03]) == [None, pytest.approx(0.04), None, pytest.approx(0.04)]
    assert correct_by_holm([None]) == [None] and correct_by_holm([]) == []


def test_holm_keeps_the_chance_of_any_error() -> None:
    uniform = np.random.default_rng(0).random((2000, 10))
    wrong = np.mean([min(p for p in correct_by_holm(list(row)) if p is not None) < 0.05 for row in uniform])
    assert wrong == pytest.approx(0.05, abs=0.015)


def test_the_spread_needs_two_seeds() -> None:
    assert spread_over_seeds([1.0, 2.0, 3.0]) == 1.0
    assert spread_over_seeds([5.0]) is None
