"""The entries of a dictionary of shared units: which groups of units are shown, and which unit stands for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from miclip_core.rosetta.buddies import DIGITS, NONE
from miclip_core.rosetta.cliques import Cliques
from miclip_core.rosetta.clusters import Clusters
from miclip_core.rosetta.graph import ZooGraph, of_all

_BLOCK = 2**16


@dataclass(frozen=True, eq=False)
class Entries:
    """One row per vertex of an entry, by entry, then vertex.

    entry int32 [Q], vertex int32 [Q]. mean_r float64 [Q]: over its edges to others of the entry; NaN without one.
    is_representative bool [Q]: the largest mean r of the entry, of equal ones the smallest vertex. source int64 [entries]:
    the number of the clique or cluster that an entry is.
    """

    entry: np.ndarray
    vertex: np.ndarray
    mean_r: np.ndarray
    is_representative: np.ndarray
    source: np.ndarray


def entries_of_cliques(cliques: Cliques, graph: ZooGraph, most: int) -> Entries:
    """At most so many cliques in their order, the largest and then strongest first, each if it shares no vertex with those taken."""
    source = _disjoint(cliques.vertices, len(graph.member), most)
    vertices = cliques.vertices[source]
    entry, column = (vertices != NONE).nonzero()
    return _entries(graph, entry, vertices[entry, column], source)


def entries_of_clusters(
    clusters: Clusters, tuples: np.ndarray, graph: ZooGraph, first_vertex: int, most: int
) -> Entries:
    """The first clusters of an anchor, at most so many: their units that have a tuple, and all members of those tuples.

    tuples int32 [N,1+M]: vertices, that of the anchor first, as `Tuples.sets`. Unit u of the anchor is vertex first_vertex + u. A unit of another member can be in several entries.

    Raises:
        ValueError: a tuple around a unit that is in no cluster.
    """
    units = tuples[:, 0] - first_vertex
    place = np.searchsorted(clusters.units, units)
    known = place < len(clusters.units)
    known[known] = clusters.units[place[known]] == units[known]
    if not known.all():
        raise ValueError(
            f"unit {int(units[~known][0])} of the anchor has a tuple and is in no cluster; cluster all of them"
        )
    found = clusters.cluster[place]
    source = np.unique(found)[:most]
    shown = np.isin(found, source)
    vertices = tuples[shown]
    entry = np.repeat(np.searchsorted(source, found[shown]), vertices.shape[1])
    return _entries(graph, entry, vertices.ravel(), source.astype(np.int64))


def _disjoint(vertices: np.ndarray, n: int, most: int) -> np.ndarray:
    """int64: the rows of vertices [N, members] that taking each in turn unless a vertex of it is taken leaves, at most so many.

    All rows that come first for every vertex of theirs are taken at once, then those that they exclude left out.
    """
    taken = np.zeros(n + 1, bool)  # NONE is the last place, which is never taken
    first = np.zeros(n + 1, np.int64)
    chosen: list[np.ndarray] = []
    for start in range(0, len(vertices), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(vertices)))
        rows = rows[~taken[vertices[rows]].any(1)]
        while len(rows):
            here = vertices[rows]
            first[here] = len(vertices)
            np.minimum.at(first, here, rows[:, None])
            wins = ((first[here] == rows[:, None]) | (here == NONE)).all(1)
            chosen.append(rows[wins])
            taken[here[wins]] = True
            taken[NONE] = False
            rows = rows[~wins]
            rows = rows[~taken[vertices[rows]].any(1)]
        if sum(map(len, chosen)) >= most:
            break
    return np.sort(np.concatenate([np.zeros(0, np.int64), *chosen]))[:most]


def _entries(graph: ZooGraph, entry: np.ndarray, vertex: np.ndarray, source: np.ndarray) -> Entries:
    """Rows of entries that may name a vertex more than once."""
    n = max(1, len(graph.member))
    keys = np.unique(entry.astype(np.int64) * n + vertex)
    entry, vertex = np.divmod(keys, n)
    mean_r = _mean_r(graph, keys, entry, vertex)
    order = np.lexsort((vertex, -np.round(np.nan_to_num(mean_r, nan=-np.inf), DIGITS), entry))
    is_representative = np.zeros(len(keys), bool)
    is_representative[order[np.searchsorted(entry, np.arange(len(source)))]] = True
    return Entries(entry.astype(np.int32), vertex.astype(np.int32), mean_r, is_representative, source)


def _mean_r(graph: ZooGraph, keys: np.ndarray, entry: np.ndarray, vertex: np.ndarray) -> np.ndarray:
    """float64 [Q]: over the edges of each vertex to others of its entry; keys are ascending, entry * V + vertex."""
    start, neighbours = graph.adjacency
    row = np.repeat(np.arange(len(vertex)), start[vertex + 1] - start[vertex])
    near = of_all(start, neighbours, vertex)
    wanted = entry[row] * len(graph.member) + near
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    inside = keys[place] == wanted
    row, near = row[inside], near[inside]
    total = np.bincount(row, graph.r_between(vertex[row], near), len(vertex))
    count = np.bincount(row, minlength=len(vertex))
    return np.divide(total, count, out=np.full(len(vertex), np.nan), where=count > 0)
