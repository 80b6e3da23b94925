"""Counts of buddies by site and depth, against loops and tables small enough to read."""

from __future__ import annotations

import math

import numpy as np
import pytest

from miclip_core.rosetta.layers import count_by_depth, count_by_site, count_universality, share_with_buddy


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


def test_edges_by_depth():
    counts = count_by_depth(np.array([0.0, 0.1, 0.3, 1.0, 0.7]), np.array([1.0, 0.99, 0.29999999999999999, 1.0, 0.0]))
    assert counts.sum() == 5 and counts[0, 9] == counts[1, 9] == counts[3, 3] == counts[9, 9] == counts[7, 0] == 1
    # i / n falls into bin i of n, whatever the rounding of its product
    for bins in range(1, 60):
        depths = np.arange(bins) / bins
        assert count_by_depth(depths, depths, bins).tolist() == np.eye(bins, dtype=int).tolist()
    with pytest.raises(ValueError, match="expected 0 to 1"):
        count_by_depth(np.array([0.5]), np.array([1.5]))


def test_the_share_of_a_sites_units_that_have_a_buddy():
    share = share_with_buddy(np.array([0, 0, 3, 4]), np.array([0, 0, 0, 1, 1, 3]), 4)
    assert share[:2].tolist() == [1 / 3, 1.0] and math.isnan(share[2]) and share[3] == 0


def test_universality_by_site():
    counts = count_universality(np.array([0, 2, 2, 1]), np.array([0, 0, 0, 1]), sites=3, members=3)
    assert counts.tolist() == [[1, 0, 2], [0, 1, 0], [0, 0, 0]]
