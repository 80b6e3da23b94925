"""Tuples around an anchor: one of its units with a buddy in every other member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miclip_core.rosetta.buddies import DIGITS, NONE
from miclip_core.rosetta.graph import ZooGraph, ranges


@dataclass(frozen=True, eq=False)
class Tuples:
    """Tuples by mean r descending, then smallest r, then vertices ascending.

    anchor int32 [N]: vertices of the anchor. vertices int32 [N,M]: their buddies, a column for each other member; r
    float64 and alternatives int32 [N,M]: how strong that edge is, and how many further buddies there are in that member.
    mean_r, min_r float64 [N]. truncated: whether there are more than were asked for.
    """

    anchor: np.ndarray
    vertices: np.ndarray
    r: np.ndarray
    alternatives: np.ndarray
    mean_r: np.ndarray
    min_r: np.ndarray
    truncated: bool

    def __len__(self) -> int:
        return len(self.anchor)

    @property
    def sets(self) -> np.ndarray:
        """int32 [N,1+M]: the vertices of each, that of the anchor first."""
        return np.column_stack((self.anchor, self.vertices))


class Star:
    """Units of an anchor that have a buddy in every other member, and all of their buddies there.

    units int32 [N]: vertices, ascending.
    """

    def __init__(self, graph: ZooGraph, anchor: np.ndarray, others: Sequence[int]) -> None:
        """anchor int [any]: vertices of one member; others: all members that a tuple has a vertex of.

        Raises:
            ValueError: no others, one twice, or one that a vertex of the anchor is of.
        """
        own = set(np.unique(graph.member[anchor]).tolist())
        if not others or len(set(others)) < len(others) or not own.isdisjoint(others):
            raise ValueError(f"anchor of members {sorted(own)} with {list(others)}; expected other members, each once")
        column_of = np.full(max(graph.members, max(others) + 1), NONE)
        column_of[list(others)] = np.arange(len(others))
        anchor = np.unique(anchor).astype(np.int32)
        place, vertices, r = graph.edges_of(anchor)
        cell = place * len(others) + column_of[graph.member[vertices]]
        inside = np.flatnonzero(column_of[graph.member[vertices]] != NONE)
        order = inside[np.lexsort((vertices[inside], -np.round(r[inside], DIGITS), cell[inside]))]
        self._vertices, self._r = vertices[order], r[order]
        count = np.bincount(cell[order], minlength=len(anchor) * len(others))
        first = np.cumsum(count) - count
        whole = count.reshape(-1, len(others)).all(1)
        self.units = anchor[whole]
        # the buddies of unit i in other j, the best first, are count[i, j] from first[i, j] on
        self._count, self._first = (values.reshape(-1, len(others))[whole] for values in (count, first))

    def best_tuples(self, most: int = 1_000_000) -> Tuples:
        """One tuple per unit, with its best buddies; of equally good ones the smallest vertex.

        At most so many: of the units whose tuple is best. Dravid et al. 2023, Rosetta Neurons, sec. 3.2.
        """
        return self._tuples(np.ones(len(self.units), np.int64), most)

    def all_tuples(self, most: int = 1_000_000) -> Tuples:
        """All combinations of the buddies of each unit; at most so many: of the units whose best tuple is best."""
        total = np.ones(len(self.units), np.int64)
        for count in self._count.T:  # no product may overflow, and beyond the most its size says nothing
            total = np.minimum(total * count, most + 1)
        return self._tuples(total, most)

    def _tuples(self, wanted: np.ndarray, most: int) -> Tuples:
        """The first combinations of each unit, int64 [N] of them, of which the first has all the best."""
        ranked = _rank(self.units, *self._take(np.arange(len(self.units)), 0))
        ends = np.cumsum(wanted[ranked])
        lengths = np.clip(most - (ends - wanted[ranked]), 0, wanted[ranked])
        rows, number = np.repeat(ranked, lengths), ranges(np.zeros_like(lengths), lengths)
        places = np.zeros((len(rows), self._count.shape[1]), np.int64)
        for column in range(places.shape[1] - 1, -1, -1):
            number, places[:, column] = np.divmod(number, self._count[rows, column])
        vertices, r = self._take(rows, places)
        order = _rank(self.units[rows], vertices, r)
        rows, vertices, r = rows[order], vertices[order], r[order]
        alternatives = (self._count[rows] - 1).astype(np.int32)
        truncated = bool(len(ends) and ends[-1] > most)
        return Tuples(self.units[rows], vertices, r, alternatives, r.mean(1), r.min(1), truncated)

    def _take(self, rows: np.ndarray, places: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """Vertices and r [N,M] at places [N,M] of the lists of units `rows` [N]."""
        at = self._first[rows] + places
        return self._vertices[at], self._r[at]


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Of the sets of vertices (int [N,any]) that are a tuple of either anchor, the share that are one of both; NaN without any."""
    either = [np.unique(np.sort(sets, 1), axis=0) for sets in (one, other)]
    total = len(either[0]) + len(either[1])
    if total == 0:
        return float("nan")
    if one.shape[1] != other.shape[1]:
        return 0.0
    both = total - len(np.unique(np.concatenate(either), axis=0))
    return both / (total - both)


def _rank(anchor: np.ndarray, vertices: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The order of tuples; their sum of r says nothing beyond the mean, for all have as many members."""
    rounded = -np.round(r.mean(1), DIGITS), -np.round(r.min(1), DIGITS)
    return np.lexsort((*vertices.T[::-1], anchor, rounded[1], rounded[0]))
