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
        edges, r = np.sort(np.asarray(edges, np.int64).reshape(-1, 2), axis=1), np.asarray(r, np.float64)
        self.member = np.asarray(member, np.int32)
        if r.shape != (len(edges),) or not np.isfinite(r).all():
            raise ValueError(f"{len(edges)} edges with r {r.shape}; expected one finite r for each")
        if len(edges) and (edges.min() < 0 or edges.max() >= len(self.member)):
            raise ValueError(
                f"edges of vertices {edges.min()} to {edges.max()}; there are {len(self.member)} from 0 on"
            )
        inside = self.member[edges[:, 0]] == self.member[edges[:, 1]]
        if inside.any():
            raise ValueError(f"edge {edges[inside][0].tolist()} is inside member {self.member[edges[inside][0, 0]]}")
        keys = edges[:, 0] * len(self.member) + edges[:, 1]
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        twice = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        if len(twice):
            raise ValueError(f"edge {edges[order[twice[0]]].tolist()} is given twice")
        self.edges = edges[order].astype(np.int32)
        self.r = r[order]

    @property
    def members(self) -> int:
        """How many there are."""
        return int(self.member.max(initial=-1)) + 1

    @cached_property
    def adjacency(self) -> tuple[np.ndarray, np.ndarray]:
        """start int64 [V+1], neighbours int32 [2E]: those of v are neighbours[start[v]:start[v+1]], ascending."""
        here, there = np.concatenate((self.edges, self.edges[:, ::-1])).T
        order = np.lexsort((there, here))
        start = np.zeros(len(self.member) + 1, np.int64)
        np.cumsum(np.bincount(here, minlength=len(self.member)), out=start[1:])
        return start, there[order]

    def r_between(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """r float64 [Q] of the edges between vertices one and other (int [Q]); NaN where there is none."""
        if not len(self.edges):
            return np.full(len(one), np.nan)
        keys = np.minimum(one, other).astype(np.int64) * len(self.member) + np.maximum(one, other)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self.r[places], np.nan)

    def between(self, first: int, second: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The edges of two members: vertices of the first, of the second (int32 [Q]) and r [Q], sorted by vertices."""
        members = self.member[self.edges]
        straight = (members[:, 0] == first) & (members[:, 1] == second)
        turned = (members[:, 0] == second) & (members[:, 1] == first)
        edges = np.concatenate((self.edges[straight], self.edges[turned][:, ::-1]))
        order = np.lexsort((edges[:, 1], edges[:, 0]))
        return edges[order, 0], edges[order, 1], np.concatenate((self.r[straight], self.r[turned]))[order]

    def restrict(self, kept_V: np.ndarray) -> ZooGraph:
        """The same vertices, with only the edges between those for which `kept_V` (bool [V]) holds."""
        kept = kept_V[self.edges].all(1)
        return ZooGraph(self.member, self.edges[kept], self.r[kept])


def join_buddies(sizes: Sequence[int], pairs: Mapping[tuple[int, int], Buddies]) -> ZooGraph:
    """The graph of members with so many units each, from the buddies of pairs (a, b) of them.

    Vertices are numbered member by member: unit u of member i is sum(sizes[:i]) + u.

    Raises:
        ValueError: a pair of a member with itself or in both orders, or a unit that its member does not have.
    """
    first = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    edges, r = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for (a, b), buddies in sorted(pairs.items()):
        if buddies.a.max(initial=-1) >= sizes[a] or buddies.b.max(initial=-1) >= sizes[b]:
            raise ValueError(f"buddies of members {a} and {b} are of units beyond their {sizes[a]} and {sizes[b]}")
        edges.append(np.stack((first[a] + buddies.a, first[b] + buddies.b), 1))
        r.append(buddies.r)
    return ZooGraph(np.repeat(np.arange(len(sizes)), sizes), np.concatenate(edges), np.concatenate(r))


def universality(graph: ZooGraph) -> np.ndarray:
    """int32 [V]: in how many other members a vertex has at least one buddy."""
    here, there = np.concatenate((graph.edges, graph.edges[:, ::-1])).T.astype(np.int64)
    met = np.unique(here * max(1, graph.members) + graph.member[there])
    return np.bincount(met // max(1, graph.members), minlength=len(graph.member)).astype(np.int32)


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
