"""Connected components of the graph of a zoo: what hangs together by chains of buddies, which is no concept yet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from miclip_core.rosetta.graph import ZooGraph, of_all, ranges

_WORD = 64  # sources whose distances are had at once, one bit each


@dataclass(frozen=True, eq=False)
class Components:
    """Connected components of two vertices or more, the largest first, of equal ones that with the smallest vertex.

    of_vertex int32 [V]: number of its component, -1 without an edge. units, members int32 [C]: how many are in it.
    density float64 [C]: edges over pairs of vertices of different members. longest_path int32 [C]: the largest distance
    of two of its vertices, in edges, or where is_path_exact (bool [C]) does not hold, the largest that was found.
    """

    of_vertex: np.ndarray
    units: np.ndarray
    members: np.ndarray
    density: np.ndarray
    longest_path: np.ndarray
    is_path_exact: np.ndarray


def components(graph: ZooGraph, exact_up_to: int = 4096) -> Components:
    """Components of the graph, with longest paths that are exact in those of up to so many vertices.

    At K = 5 one giant component is normal: what chains is no concept.
    """
    number, sizes = number_components(len(graph.member), graph.edges)
    units = sizes[sizes > 1]
    of_vertex = np.where(number < len(units), number, -1)
    members, counts = np.unique(
        np.stack((of_vertex, graph.member), 1)[of_vertex >= 0].reshape(-1, 2), axis=0, return_counts=True
    )
    pairs = pairs_of(units) - np.bincount(members[:, 0], pairs_of(counts), len(units))
    edges = np.bincount(of_vertex[graph.edges[:, 0]], minlength=len(units))
    return Components(
        of_vertex,
        units.astype(np.int32),
        np.bincount(members[:, 0], minlength=len(units)).astype(np.int32),
        edges / pairs,
        _longest_paths(graph, of_vertex, units, exact_up_to),
        units <= max(exact_up_to, _WORD),
    )


def pairs_of(n: np.ndarray) -> np.ndarray:
    """float64: how many pairs there are of so many (int)."""
    return n * (n - 1) / 2


def number_components(n: int, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components of n vertices with these edges (int [E,2]): int32 [n] numbers, int64 [C] sizes.

    The largest first, of equal ones that with the smallest vertex; a vertex without an edge is one of its own.
    """
    joined = coo_array((np.ones(len(edges), np.int8), tuple(edges.T)), shape=(n, n))
    found = connected_components(joined, directed=False)[1]
    _, first, sizes = np.unique(found, return_index=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order))
    return number[found], sizes[order]


def _longest_paths(graph: ZooGraph, of_vertex: np.ndarray, units: np.ndarray, exact_up_to: int) -> np.ndarray:
    """int32 [C]: from each vertex in turn, 64 at a time; in larger components from 64, and from 64 of the farthest of those."""
    longest = np.zeros(len(units), np.int32)
    small = units <= max(exact_up_to, _WORD)
    place = np.zeros(len(of_vertex), np.int64)  # of a vertex among those of its component
    order = np.argsort(of_vertex, kind="stable")[np.count_nonzero(of_vertex < 0) :]
    place[order] = ranges(np.zeros(len(units), np.int64), units)
    for word in range(-(-int(units[small].max(initial=0)) // _WORD)):
        _lengthen(longest, graph, of_vertex, place - word * _WORD, small & (units > word * _WORD))
    if not small.all():
        far = _lengthen(longest, graph, of_vertex, place, ~small)
        order = order[np.lexsort((order, -far[order], of_vertex[order]))]
        place[order] = ranges(np.zeros(len(units), np.int64), units)
        _lengthen(longest, graph, of_vertex, place, ~small)
    return longest


def _lengthen(
    longest: np.ndarray, graph: ZooGraph, of_vertex: np.ndarray, place: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
    """Raise `longest` of the chosen components to the distances from their vertices at places 0 to 63; these, int32 [V].

    All at once: bit p of a vertex says whether the source at place p has reached it; each step passes bits to neighbours.
    """
    start, neighbours = graph.adjacency
    inside = (of_vertex >= 0) & np.append(chosen, False)[of_vertex]
    vertices = np.flatnonzero(inside)
    last = np.zeros(len(of_vertex), np.int32)
    if not len(vertices):
        return last
    number = np.cumsum(inside) - 1
    lists = number[of_all(start, neighbours, vertices)]
    firsts = np.concatenate(([0], np.cumsum((start[1:] - start[:-1])[vertices])[:-1]))
    source = (place[vertices] >= 0) & (place[vertices] < _WORD)
    reached = np.where(source, np.uint64(1) << (place[vertices] % _WORD).astype(np.uint64), np.uint64(0))
    step, changed = 0, source
    while changed.any():
        last[vertices[changed]] = step
        spread = reached | np.bitwise_or.reduceat(reached[lists], firsts)
        step, changed, reached = step + 1, spread != reached, spread
    np.maximum.at(longest, of_vertex[vertices], last[vertices])
    return last
