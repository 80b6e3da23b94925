"""Counts of buddies by site, against loops and tables small enough to read."""

from __future__ import annotations

import numpy as np
import pytest

from miclip_core.rosetta.layers import count_by_site


def test_edges_by_site_with_their_median():
    site_a, site_b = np.array([0, 0, 1, 0, 0]), np.array([2, 2, 0, 2, 1])
    counts, medians = count_by_site(site_a, site_b, np.array([0.9, 0.3, 0.5, 0.4, 0.7]), 2, 3)
    assert counts.tolist() == [[0, 1, 3], [1, 0, 0]]
    np.testing.assert_array_equal(medians, [[np.nan, 0.7, 0.4], [0.5, np.nan, np.nan]])
    none, nothing = count_by_site(np.zeros(0, int), np.zeros(0, int), np.zeros(0), 1, 2)
    assert none.tolist() == [[0, 0]] and np.isnan(nothing).all()


def test_medians_are_those_of_numpy():
    rng = np.random.default_rng(0)
    site_a, site_b, r = rng.integers(0, 4, 300), rng.integers(0, 7, 300), rng.random(300)
    counts, medians = count_by_site(site_a, site_b, r, 4, 7)
    for a in range(4):
        for b in range(7):
            here = r[(site_a == a) & (site_b == b)]
            assert counts[a, b] == len(here) and medians[a, b] == pytest.approx(np.median(here), abs=1e-15)
