"""Whether one way to explain is better than another: the tests of the field, a paired one beside them, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Literal

import numpy as np

from miclip_core.evaluate.significance import LEAST_PAIRS, compare_scores, correct_by_holm, rank_sum
from miclip_core.shuffle import permute

TestName = Literal["shapiro", "mann_whitney", "wilcoxon"]
_MOST_SHAPIRO = 5000
"""Beyond so many values Royston's approximation (1995) of its p value is not known to hold; so many are drawn then."""


@dataclass(frozen=True)
class MethodTest:
    """One test of one measure.

    shapiro: whether the scores of method_a are far from normal; method_b is empty. mann_whitney: whether those of a are
    greater than those of b, unpaired, one tail. wilcoxon: whether a and b differ on the features that both have, two tails.
    n: features; of mann_whitney those of the method that has fewer. statistic and p are None for fewer than six, and where
    the test says nothing. p_holm: corrected; None until it is.
    """

    method_a: str
    method_b: str
    test: TestName
    n: int
    statistic: float | None = None
    p: float | None = None
    p_holm: float | None = None


def compare_methods(scores_UA: np.ndarray, methods: Sequence[str]) -> list[MethodTest]:
    """All tests of one measure: normality of each method, each ordered pair unpaired, and each pair once on common features.

    scores: fp64 [U, A], NaN where a feature has none.

    Raises:
        ValueError: not one column of scores per method.
    """
    scores = np.asarray(scores_UA, np.float64)
    if scores.ndim != 2 or scores.shape[1] != len(methods):
        raise ValueError(f"found scores {scores.shape} for {len(methods)} methods; expected [features, methods]")
    of = dict(zip(methods, scores.T, strict=True))
    return [
        *(_shapiro(a, of[a]) for a in methods),
        *(_mann_whitney(a, b, of[a], of[b]) for a, b in permutations(methods, 2)),
        *(_wilcoxon(a, b, of[a], of[b]) for a, b in combinations(methods, 2)),
    ]


def correct_tests(tests: Sequence[MethodTest]) -> list[MethodTest]:
    """The same tests with p_holm, corrected over all that are of one kind (Holm 1979)."""
    corrected = list(tests)
    for kind in ("shapiro", "mann_whitney", "wilcoxon"):
        places = [place for place, test in enumerate(tests) if test.test == kind]
        for place, p_holm in zip(places, correct_by_holm([tests[place].p for place in places]), strict=True):
            corrected[place] = replace(tests[place], p_holm=p_holm)
    return corrected


def _shapiro(a: str, scores: np.ndarray) -> MethodTest:
    from scipy.stats import shapiro

    known = _known(scores)
    nothing = MethodTest(a, "", "shapiro", len(known))
    if len(known) < LEAST_PAIRS or known.min() == known.max():
        return nothing
    found = shapiro(known[np.sort(permute(len(known), "shapiro")[:_MOST_SHAPIRO])])
    return replace(nothing, statistic=float(found.statistic), p=float(found.pvalue))


def _mann_whitney(a: str, b: str, scores_a: np.ndarray, scores_b: np.ndarray) -> MethodTest:
    from scipy.stats import mannwhitneyu

    ours, theirs = _known(scores_a), _known(scores_b)
    nothing = MethodTest(a, b, "mann_whitney", min(len(ours), len(theirs)))
    if nothing.n < LEAST_PAIRS or len(np.unique(np.concatenate([ours, theirs]))) == 1:
        return nothing
    found = mannwhitneyu(ours, theirs, alternative="greater")
    return replace(nothing, statistic=float(found.statistic), p=float(found.pvalue))


def _wilcoxon(a: str, b: str, scores_a: np.ndarray, scores_b: np.ndarray) -> MethodTest:
    found = compare_scores(scores_a, scores_b)
    if found.p_value is None:
        return MethodTest(a, b, "wilcoxon", found.n_pairs)
    return MethodTest(a, b, "wilcoxon", found.n_pairs, rank_sum(_known(scores_a - scores_b)), found.p_value)


def _known(scores: np.ndarray) -> np.ndarray:
    return scores[~np.isnan(scores)]
