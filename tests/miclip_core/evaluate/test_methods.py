"""Methods in pairs: which pairs, what of several seeds counts, and that the numbers are those of the tests by themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from miclip_core.evaluate.methods import Measured, Score, compare_all, summarise
from miclip_core.evaluate.significance import bootstrap_interval, compare_scores

NAN = math.nan


def measured(variant: str, values: list[float], seed: int | None = None) -> Measured:
    return Measured(variant, seed, np.array(values, np.float64))


def test_every_pair_is_there_once_and_ours_comes_first() -> None:
    names = ["soft", "miclip out", "act_values", "miclip in"]
    pairs = [(v.variant, v.against) for v in compare_all([measured(name, [1.0]) for name in names], "score")]
    assert pairs == [
        ("miclip in", "miclip out"),
        ("miclip in", "act_values"),
        ("miclip in", "soft"),
        ("miclip out", "act_values"),
        ("miclip out", "soft"),
        ("act_values", "soft"),
    ]


def test_scores_are_averaged_over_the_seeds_that_have_one_before_they_are_compared() -> None:
    ours = [measured("miclip", [1, 2, 3, 4, 5, 6, NAN, NAN], 0), measured("miclip", [3, 2, 1, 8, 5, 0, 4, NAN], 1)]
    theirs = measured("other", [1, 1, 1, 2, 3, 0, 1, 7])
    (found,) = compare_all([theirs, ours[1], ours[0]], "score", seed=5)
    mean, other = [2, 2, 2, 6, 5, 3, 4], [1, 1, 1, 2, 3, 0, 1]
    assert found.comparison == compare_scores(mean, other, seed=5)
    assert (found.comparison.n_pairs, found.comparison.difference) == (7, 15 / 7)
    assert (found.comparison.test, found.comparison.p_value) == ("wilcoxon_exact", 2 / 2**7)
    assert (found.seeds, found.sd_seed) == (2, pytest.approx(np.std([21 / 6, 23 / 7], ddof=1)))


def test_of_what_is_right_or_wrong_the_lowest_seed_counts_and_all_seeds_spread() -> None:
    ours = [measured("miclip", [0] * 8, 1), measured("miclip", [1] * 7 + [NAN], 0), measured("miclip", [1] * 8, 2)]
    (found,) = compare_all([*ours, measured("other", [0] * 7 + [1])], "right_or_wrong")
    assert (found.comparison.test, found.comparison.n_pairs, found.comparison.difference) == ("mcnemar_exact", 7, 1)
    assert found.comparison.p_value == stats.binomtest(7, 7, 0.5).pvalue == 2 / 2**7
    assert (found.seeds, found.sd_seed) == (3, pytest.approx(np.std([0, 1, 1], ddof=1)))


def test_one_seed_has_no_spread_and_few_pairs_no_verdict() -> None:
    (found,) = compare_all([measured("miclip", [1, 1, 0, 1, 1], 7), measured("other", [0] * 5)], "right_or_wrong")
    assert (found.seeds, found.sd_seed) == (1, None)
    assert (found.comparison.n_pairs, found.comparison.difference) == (5, pytest.approx(0.8))
    assert (found.comparison.test, found.comparison.p_value, found.comparison.low) == (None, None, None)


def test_the_order_in_which_methods_come_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    methods = [Measured(name, seed, rng.normal(size=20)) for name in ("miclip a", "b", "c") for seed in (0, 1, 2)]
    assert list(compare_all(methods, "score")) == list(compare_all(methods[::-1], "score"))


def test_a_method_with_one_seed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="miclip with seed 0 is there twice"):
        list(compare_all([measured("miclip", [1], 0), measured("miclip", [2], 0)], "score"))


def test_a_summary_is_of_what_is_known_with_an_interval_from_six_on() -> None:
    assert summarise(measured("a", [NAN, NAN])) == Score(0, None)
    assert summarise(measured("a", [1, 2, NAN, 3, 4, 5])) == Score(5, 3.0)
    values = [1.0, 2, 3, 4, 5, 9]
    assert summarise(measured("a", [*values, NAN]), 3) == Score(6, 4.0, *bootstrap_interval(values, 3))
