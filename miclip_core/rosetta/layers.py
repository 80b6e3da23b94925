"""Where in two models the buddies are: counts by site."""

from __future__ import annotations

import numpy as np


def count_by_site(
    site_a: np.ndarray, site_b: np.ndarray, r: np.ndarray, sites_a: int, sites_b: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many edges join each two sites, int64 [sites_a, sites_b], and the median of their r, float64, NaN where none do.

    site_a, site_b int [E]: the sites of the two units of an edge, numbered within their model. r float64 [E].
    """
    cell = site_a.astype(np.int64) * sites_b + site_b
    counts = np.bincount(cell, minlength=sites_a * sites_b)
    medians = np.full(sites_a * sites_b, np.nan)
    ordered = r[np.lexsort((r, cell))]
    found = counts > 0
    first = (np.cumsum(counts) - counts)[found]
    medians[found] = (ordered[first + (counts[found] - 1) // 2] + ordered[first + counts[found] // 2]) / 2
    return counts.reshape(sites_a, sites_b), medians.reshape(sites_a, sites_b)
