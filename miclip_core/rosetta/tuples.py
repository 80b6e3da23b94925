"""Tuples around an anchor: one of its units with a buddy in every other member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miclip_core.rosetta.buddies import DIGITS
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


@dataclass(frozen=True, eq=False)
class _Lists:
    """The buddies of anchor units in one other member, the best first: those of unit i at first[i], count[i] of them."""

    vertices: np.ndarray
    r: np.ndarray
    first: np.ndarray
    count: np.ndarray


def star_tuples(
    graph: ZooGraph, anchor: int, others: Sequence[int], full: bool = False, most: int = 1_000_000
) -> Tuples:
    """One tuple per unit of the anchor that has a buddy in each of the others, with the best; or, if full, all combinations.

    Of equally good buddies the smallest vertex is taken. At most so many tuples: of the units whose best tuple is best.
    Dravid et al. 2023, Rosetta Neurons, sec. 3.2.

    Raises:
        ValueError: no others, the anchor among them, or one twice.
    """
    if not others or anchor in others or len(set(others)) < len(others):
        raise ValueError(f"anchor {anchor} with members {list(others)}; expected other members, each once")
    edges = [graph.between(anchor, other) for other in others]
    units = np.flatnonzero(graph.member == anchor).astype(np.int32)
    for mine, _, _ in edges:
        units = np.intersect1d(units, mine)
    lists = [_best_first(units, *found) for found in edges]
    ranked = _rank(units, *_take(lists, np.arange(len(units)), np.zeros((len(units), len(others)), np.int64)))
    total = np.ones(len(units), np.int64)
    if full:
        for found in lists:  # no product may overflow, and beyond the most its size says nothing
            total = np.minimum(total * found.count, most + 1)
    ends = np.cumsum(total[ranked])
    lengths = np.clip(most - (ends - total[ranked]), 0, total[ranked])
    rows = np.repeat(ranked, lengths)
    truncated = bool(len(ends) and ends[-1] > most)
    return _tuples(units, lists, rows, ranges(np.zeros_like(lengths), lengths), truncated)


def jaccard(one: Tuples, other: Tuples) -> float:
    """Of the sets of vertices that are a tuple of either anchor, the share that are one of both; NaN if there are none."""
    sets = [np.unique(np.sort(np.column_stack((t.anchor, t.vertices)), 1), axis=0) for t in (one, other)]
    either = len(sets[0]) + len(sets[1])
    if either == 0:
        return float("nan")
    if sets[0].shape[1] != sets[1].shape[1]:
        return 0.0
    both = either - len(np.unique(np.concatenate(sets), axis=0))
    return both / (either - both)


def _best_first(units: np.ndarray, mine: np.ndarray, theirs: np.ndarray, r: np.ndarray) -> _Lists:
    order = np.lexsort((theirs, -np.round(r, DIGITS), mine))
    mine, theirs, r = mine[order], theirs[order], r[order]
    first, end = np.searchsorted(mine, units), np.searchsorted(mine, units, "right")
    return _Lists(theirs, r, first, end - first)


def _take(lists: Sequence[_Lists], rows: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and r [N,M] at places [N,M] of the lists of units `rows` [N]."""
    at = [found.first[rows] + places[:, column] for column, found in enumerate(lists)]
    vertices = np.stack([found.vertices[index] for found, index in zip(lists, at)], 1)
    return vertices, np.stack([found.r[index] for found, index in zip(lists, at)], 1)


def _rank(anchor: np.ndarray, vertices: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The order of tuples; their sum of r says nothing beyond the mean, for all have as many members."""
    rounded = -np.round(r.mean(1), DIGITS), -np.round(r.min(1), DIGITS)
    return np.lexsort((*vertices.T[::-1], anchor, rounded[1], rounded[0]))


def _tuples(
    units: np.ndarray, lists: Sequence[_Lists], rows: np.ndarray, number: np.ndarray, truncated: bool
) -> Tuples:
    """The tuples of units `rows` [N] with such numbers [N] among the combinations of each, of which 0 is all the best."""
    places = np.zeros((len(rows), len(lists)), np.int64)
    for column in range(len(lists) - 1, -1, -1):
        number, places[:, column] = np.divmod(number, lists[column].count[rows])
    vertices, r = _take(lists, rows, places)
    order = _rank(units[rows], vertices, r)
    rows, vertices, r = rows[order], vertices[order], r[order]
    alternatives = np.stack([found.count[rows] - 1 for found in lists], 1).astype(np.int32)
    return Tuples(units[rows], vertices, r, alternatives, r.mean(1), r.min(1), truncated)
