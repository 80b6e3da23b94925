"""Means with intervals, against numpy, SciPy's Wilson interval and numbers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from miclip_core.explain.summary import Summary, summarise, summarise_share


def test_scores_have_mean_spread_and_an_interval_of_two_standard_errors() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = summarise([*values, np.nan])
    assert (found.n, found.mean, found.sd) == (400, pytest.approx(values.mean()), pytest.approx(values.std(ddof=1)))
    width = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - width, values.mean() + width), abs=0.02)


def test_few_scores_have_no_interval_one_no_spread_and_none_no_mean() -> None:
    assert summarise([1, 2, 3]) == Summary(3, 2.0, 1.0)
    assert summarise([4]) == Summary(1, 4.0)
    assert summarise([np.nan]) == summarise_share([]) == Summary(0)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (3, 3), (12, 12), (25, 27), (1, 20), (150, 300)])
def test_a_share_has_the_interval_of_wilson(hits: int, n: int) -> None:
    found = summarise_share([1] * hits + [0] * (n - hits) + [np.nan])
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert (found.n, found.mean) == (n, hits / n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
