"""Clusters of an anchor's units: what hangs together by best buddies inside the anchor, long thin chains cut into cliques."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from miclip_core.rosetta.buddies import DIGITS, Buddies
from miclip_core.rosetta.components import number_components, pairs_of


@dataclass(frozen=True, eq=False)
class Clusters:
    """A partition of units, the largest cluster first, of equal ones that with the smallest unit.

    units int32 [N], ascending; cluster int32 [N]: the number of its cluster. size int32, density float64 (edges over pairs;
    1 for a unit alone), min_r float64 (over edges; NaN for a unit alone) and is_split bool (cut from a chain) [C].
    """

    units: np.ndarray
    cluster: np.ndarray
    size: np.ndarray
    density: np.ndarray
    min_r: np.ndarray
    is_split: np.ndarray


def concept_clusters(units: np.ndarray, buddies: Buddies, split_above: int = 20, split_below: float = 0.3) -> Clusters:
    """Clusters of `units` (int [N], each once) under the best buddies among the units of their member.

    Connected components (Dravid et al. 2023, Rosetta Neurons, sec. 3.3); those of more than split_above units with a density
    under split_below are cut by complete linkage, so that all units of a piece are buddies of each other.

    Raises:
        ValueError: a unit twice.
    """
    ordered = np.unique(np.asarray(units, np.int32))
    if len(ordered) < len(units):
        raise ValueError(f"{len(units) - len(ordered)} units are given twice; expected each once")
    edges, r = _inside(ordered, buddies)
    number, sizes = number_components(len(ordered), edges)
    thin = np.bincount(number[edges[:, 0]], minlength=len(sizes)) < split_below * pairs_of(sizes)
    is_long = (sizes > split_above) & thin
    whole = ~is_long[number[edges[:, 0]]]
    pieces = complete_linkage(len(ordered), edges[~whole], r[~whole])
    uncut = pieces[edges[:, 0]] == pieces[edges[:, 1]]
    kept = whole | uncut
    return _describe(ordered, edges[kept], r[kept], is_long[number])


def complete_linkage(n: int, edges: np.ndarray, r: np.ndarray) -> np.ndarray:
    """int64 [n]: for each of n vertices the smallest of its cluster, when the two closest clusters are joined again and again.

    Clusters are as close as the smallest r between them, and never joined where an edge is missing, so each is a clique of
    edges int [E,2] with r float64 [E]. Of equally close ones those of the smallest vertices are joined first.
    """
    links: list[dict[int, float]] = [{} for _ in range(n)]
    for (a, b), value in zip(np.sort(edges, axis=1).tolist(), np.round(r, DIGITS).tolist()):
        links[a][b] = links[b][a] = value
    closest = [(-value, a, b) for a in range(n) for b, value in links[a].items() if a < b]
    heapq.heapify(closest)
    joined = np.arange(n)
    while closest:
        negative, a, b = heapq.heappop(closest)
        if links[a].get(b) != -negative:
            continue  # one of them was joined to another, which left this pair further apart or no pair
        joined[b] = a
        for other, link in _join(links, a, b):
            heapq.heappush(closest, (-link, min(a, other), max(a, other)))
    for vertex in range(n):  # a vertex is joined to a smaller one, whose own end is known by then
        joined[vertex] = joined[joined[vertex]]
    return joined


def _join(links: list[dict[int, float]], a: int, b: int) -> list[tuple[int, float]]:
    """Let b be part of a, and say to which others that changed the link of a."""
    of_a, of_b = links[a], links[b]
    links[a], links[b] = {}, {}
    changed = []
    for other in of_a.keys() | of_b.keys():
        links[other].pop(a, None)
        links[other].pop(b, None)
        if other in of_a and other in of_b:
            link = min(of_a[other], of_b[other])
            links[a][other] = links[other][a] = link
            if link != of_a[other]:
                changed.append((other, link))
    links[a].pop(b, None)
    return changed


def _inside(ordered: np.ndarray, buddies: Buddies) -> tuple[np.ndarray, np.ndarray]:
    """The buddies that are both among the units: places int64 [E,2] and r [E]."""
    both = buddies.keep(np.isin(buddies.a, ordered) & np.isin(buddies.b, ordered))
    return np.stack((np.searchsorted(ordered, both.a), np.searchsorted(ordered, both.b)), 1), both.r


def _describe(ordered: np.ndarray, edges: np.ndarray, r: np.ndarray, was_long: np.ndarray) -> Clusters:
    """The components of what edges are left; was_long bool [N]: whether a unit's component was cut."""
    cluster, sizes = number_components(len(ordered), edges)
    min_r = np.full(len(sizes), np.inf)
    np.minimum.at(min_r, cluster[edges[:, 0]], r)
    alone = sizes == 1
    count = np.bincount(cluster[edges[:, 0]], minlength=len(sizes))
    is_split = np.zeros(len(sizes), bool)
    is_split[cluster[was_long]] = True
    return Clusters(
        ordered,
        cluster,
        sizes.astype(np.int32),
        np.where(alone, 1.0, count / np.maximum(pairs_of(sizes), 1)),
        np.where(alone, np.nan, min_r),
        is_split,
    )
