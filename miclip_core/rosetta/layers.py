"""Where in two models the buddies are: counts by site and by depth."""

from __future__ import annotations

import numpy as np

from miclip_core.rosetta.buddies import DIGITS


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


def count_by_depth(depth_a: np.ndarray, depth_b: np.ndarray, bins: int = 10) -> np.ndarray:
    """int64 [bins, bins]: how many edges join units of such depths, float [E] from 0 to 1; bins are equally wide.

    Raises:
        ValueError: a depth outside of 0 to 1.
    """
    depths = np.stack((depth_a, depth_b)).astype(np.float64)
    if not ((depths >= 0) & (depths <= 1)).all():
        raise ValueError(f"depths {depths.min():.3g} to {depths.max():.3g}; expected 0 to 1")
    places = np.minimum(np.floor(np.round(depths * bins, DIGITS)).astype(np.int64), bins - 1)
    return np.bincount(places[0] * bins + places[1], minlength=bins * bins).reshape(bins, bins)


def share_with_buddy(units: np.ndarray, site: np.ndarray, sites: int) -> np.ndarray:
    """float64 [sites]: the share of the units of a site that are among `units` (int [E], repeated at will); NaN without units.

    site int [U]: the site of every unit that was compared.
    """
    matched = np.zeros(len(site), bool)
    matched[units] = True
    of_site = np.bincount(site, minlength=sites)
    return np.divide(
        np.bincount(site[matched], minlength=sites), of_site, out=np.full(sites, np.nan), where=of_site > 0
    )


def count_universality(degree: np.ndarray, site: np.ndarray, sites: int, members: int) -> np.ndarray:
    """int64 [sites, members]: of each site, how many units have a buddy in 0, 1, ... of the other members (degree int [U])."""
    return np.bincount(site.astype(np.int64) * members + degree, minlength=sites * members).reshape(sites, members)
