"""The graph of a zoo: its vertices are the units of all members, its edges the best buddies of every two members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from miclip_core.rosetta.buddies import Buddies


class ZooGraph:
    """Vertices of members and edges between vertices of different members.

    member int32 [V]: the member that a vertex is a unit of. edges int32 [E,2]: each once, the smaller vertex first, sorted;
    in whatever order they are given. r float64 [E]: how strong an edge is (|r| where neighbours were ranked by it).
    """

    def __init__(self, member: np.ndarray, edges: np.ndarray, r: np.ndarray) -> None:
        """edges int [E,2], either end first.

        Raises:
            ValueError: an edge that is there twice, inside one member or to no vertex, or an r that is not finite.
        """
        edges, r = np.asarray(edges).reshape(-1, 2), np.asarray(r, np.float64)
        self.member = np.asarray(member, np.int32)
        if r.shape != (len(edges),) or not np.isfinite(r).all():
            raise ValueError(f"{len(edges)} edges with r {r.shape}; expected one finite r for each")
        if len(edges) and (edges.min() < 0 or edges.max() >= len(self.member)):
            raise ValueError(
                f"edges of vertices {edges.min()} to {edges.max()}; there are {len(self.member)} from 0 on"
            )
        edges = edges.astype(np.int32, copy=False)
        inside = self.member[edges[:, 0]] == self.member[edges[:, 1]]
        if inside.any():
            edge = sorted(edges[inside.argmax()].tolist())
            raise ValueError(f"edge {edge} is inside member {self.member[edge[0]]}")
        keys = self._keys_of(edges[:, 0], edges[:, 1])
        order = np.argsort(keys, kind="stable")
        self._keys, self.r = keys[order], r[order]
        self.edges = np.empty((len(keys), 2), np.int32)
        np.divmod(self._keys, max(1, len(self.member)), out=(self.edges[:, 0], self.edges[:, 1]), casting="unsafe")
        twice = self._keys[1:] == self._keys[:-1]
        if twice.any():
            raise ValueError(f"edge {self.edges[twice.argmax()].tolist()} is given twice")

    def _keys_of(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """int64: the smaller vertex times V, and the larger."""
        keys = np.minimum(one, other).astype(np.int64)
        keys *= len(self.member)
        keys += np.maximum(one, other)
        return keys

    @property
    def members(self) -> int:
        """How many there are."""
        return int(self.member.max(initial=-1)) + 1

    @cached_property
    def adjacency(self) -> tuple[np.ndarray, np.ndarray]:
        """start int64 [V+1], neighbours int32 [2E]: those of v are neighbours[start[v]:start[v+1]], ascending."""
        one, other = self.edges.T
        below, above = (np.bincount(ends, minlength=len(self.member)) for ends in (other, one))
        start = np.zeros(len(self.member) + 1, np.int64)
        np.cumsum(below + above, out=start[1:])
        neighbours = np.empty(2 * len(one), np.int32)
        neighbours[ranges(start[:-1], below)] = one[np.argsort(other, kind="stable")]
        neighbours[ranges(start[:-1] + below, above)] = other
        return start, neighbours

    def r_between(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """r float64 [Q] of the edges between vertices one and other (int [Q]); NaN where there is none."""
        if not len(self.edges):
            return np.full(len(one), np.nan)
        keys = self._keys_of(one, other)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self.r[places], np.nan)

    def edges_of(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The edges of these vertices (int [n]), one list after the other: the place of each in `vertices` and the vertex at
        its other end (int64, int32 [Q]), ascending, and r [Q]."""
        start, neighbours = self.adjacency
        place = np.repeat(np.arange(len(vertices)), start[vertices + 1] - start[vertices])
        other = of_all(start, neighbours, vertices)
        return place, other, self.r_between(vertices[place], other)

    def restrict(self, kept_V: np.ndarray) -> ZooGraph:
        """The same vertices, with only the edges between those for which `kept_V` (bool [V]) holds."""
        kept = kept_V[self.edges].all(1)
        if kept.all():
            return self
        return ZooGraph(self.member, self.edges[kept], self.r[kept])


def join_buddies(
    sizes: Sequence[int], pairs: Mapping[tuple[int, int], Buddies], member: Sequence[int] | None = None
) -> ZooGraph:
    """The graph of parts with so many units each, from the buddies of pairs (a, b) of them.

    Vertices are numbered part by part: unit u of part i is sum(sizes[:i]) + u. member: of which member each part is; a part
    is one of its own if that is left out.

    Raises:
        ValueError: a pair inside one member or in both orders, or a unit that its part does not have.
    """
    first = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    edges = np.empty((sum(map(len, pairs.values())), 2), np.int32)  # no second copy while they are joined
    r, stop = np.empty(len(edges)), 0
    for (a, b), buddies in sorted(pairs.items()):
        if buddies.a.max(initial=-1) >= sizes[a] or buddies.b.max(initial=-1) >= sizes[b]:
            raise ValueError(f"buddies of parts {a} and {b} are of units beyond their {sizes[a]} and {sizes[b]}")
        start, stop = stop, stop + len(buddies)
        edges[start:stop, 0], edges[start:stop, 1] = first[a] + buddies.a, first[b] + buddies.b
        r[start:stop] = buddies.r
    of = np.arange(len(sizes)) if member is None else np.asarray(member)
    return ZooGraph(np.repeat(of, sizes), edges, r)


def universality(graph: ZooGraph) -> np.ndarray:
    """int32 [V]: in how many other members a vertex has at least one buddy."""
    met = np.zeros((len(graph.member), graph.members), bool)
    for here, there in (graph.edges.T, graph.edges.T[::-1]):
        met[here, graph.member[there]] = True
    return met.sum(1, dtype=np.int32)


def best_r(graph: ZooGraph) -> np.ndarray:
    """float64 [V]: the largest r of the edges of a vertex; NaN without any."""
    found = np.full(len(graph.member), -np.inf)
    np.maximum.at(found, graph.edges[:, 0], graph.r)
    np.maximum.at(found, graph.edges[:, 1], graph.r)
    return np.where(found > -np.inf, found, np.nan)


def cores(graph: ZooGraph) -> np.ndarray:
    """int32 [V]: the largest c so that a vertex is in the c-core, where all have c neighbours or more (Seidman 1983)."""
    start, neighbours = graph.adjacency
    degree = np.diff(start)
    core = np.zeros(len(degree), np.int32)
    left = np.flatnonzero(degree)
    alive = degree > 0
    while len(left):
        c = int(degree[left].min())
        peeled = left[degree[left] <= c]
        while len(peeled):
            core[peeled], alive[peeled] = c, False
            touched, times = np.unique(of_all(start, neighbours, peeled), return_counts=True)
            degree[touched] -= times
            peeled = touched[alive[touched] & (degree[touched] <= c)]
        left = left[alive[left]]
    return core


def of_all(start: np.ndarray, neighbours: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """The neighbours of all these vertices, one list after the other; start and neighbours as in `ZooGraph.adjacency`."""
    return neighbours[ranges(start[vertices], start[vertices + 1] - start[vertices])]


def ranges(first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64: first[i], first[i] + 1, ... of so many numbers each, one range after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - lengths), lengths)
