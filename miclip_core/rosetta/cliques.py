"""Cliques of the graph of a zoo: units of different members that are all buddies of each other, each maximal one once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from miclip_core.rosetta.buddies import DIGITS, NONE
from miclip_core.rosetta.graph import ZooGraph, cores, ranges

_WORD = 64
_CELLS = 2**22  # bytes of one table of how neighbours are joined
_PLACES = 2**24  # vertices times roots whose neighbours are numbered at once

LOOKED_AT = 10
"""Cliques that are looked for at most, as a multiple of those that are asked for; what is given are the best of them."""


@dataclass(frozen=True, eq=False)
class Cliques:
    """Maximal cliques, the largest first, of equal ones that of the largest mean r, then by their vertices.

    vertices int32 [N, members]: the vertex of each member, NONE of those that are not in it; so a clique has one form only.
    size int32 [N]. min_r, mean_r float64 [N]: over all pairs in it. truncated: whether there are more than were asked for; these
    are then the first of all, or, of more than LOOKED_AT times as many, the first of those that were found until then.
    """

    vertices: np.ndarray
    size: np.ndarray
    min_r: np.ndarray
    mean_r: np.ndarray
    truncated: bool


@dataclass(frozen=True, eq=False)
class _States:
    """Partial cliques: each a root, chosen neighbours of it, those that may join, and those whose cliques are found elsewhere.

    Neighbours of a root are bits of W words: root int64 [S] into the roots of the block, the sets uint64 [S,W].
    """

    root: np.ndarray
    chosen: np.ndarray
    open: np.ndarray
    closed: np.ndarray

    def __getitem__(self, index: slice | np.ndarray) -> _States:
        return _States(self.root[index], self.chosen[index], self.open[index], self.closed[index])


def maximal_cliques(graph: ZooGraph, at_least: int = 3, most: int = 10_000_000) -> Cliques:
    """All maximal cliques of `at_least` vertices or more, at most so many; a clique has one vertex per member at most.

    Bron and Kerbosch 1973 with the pivot of Tomita et al. 2006, run for many roots at once on sets that are bits of words.

    Raises:
        ValueError: at_least below 2, or most below 1.
    """
    if at_least < 2 or most < 1:
        raise ValueError(f"at_least is {at_least} and most {most}; expected at least 2 and 1")
    blocks, found, waiting = [np.zeros((0, graph.members), np.int32)], 0, 0
    for block in _enumerate(graph.restrict(cores(graph) >= at_least - 1), at_least):
        blocks.append(block)
        found, waiting = found + len(block), waiting + len(block)
        if waiting > 2 * most:  # so few are sorted often, and few are held
            blocks = [_best(graph, np.concatenate(blocks), most).vertices]
            waiting = most
        if found > LOOKED_AT * most:
            break
    return replace(_best(graph, np.concatenate(blocks), most), truncated=found > most)


def _best(graph: ZooGraph, vertices: np.ndarray, most: int) -> Cliques:
    """The first `most` of some cliques [N, members]."""
    size, min_r, mean_r = _strengths(graph, vertices)
    order = np.lexsort((*vertices.T[::-1], -np.round(mean_r, DIGITS), -size))[:most]
    return Cliques(vertices[order], size[order], min_r[order], mean_r[order], len(vertices) > most)


def _enumerate(graph: ZooGraph, at_least: int) -> Iterator[np.ndarray]:
    """Blocks of vertices [n, members] of maximal cliques, in an order that only the graph decides.

    The root of a clique is its first vertex in the order of members by size, so that the largest member is a root for none.
    """
    sizes = np.bincount(graph.member, minlength=graph.members)
    order = np.lexsort((np.arange(len(graph.member)), graph.member, sizes[graph.member]))
    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order))
    degree = np.diff(graph.adjacency[0])
    roots = order[degree[order] > 0]
    words = -(-degree[roots] // _WORD)
    for width in np.unique(words):
        of_width = roots[words == width]
        rows = max(1, min(_CELLS // (width * _WORD) ** 2, _PLACES // len(order)))
        place = np.full((min(rows, len(of_width)), len(order)), NONE, np.int32)
        for first in range(0, len(of_width), rows):
            yield from _Block(graph, of_width[first : first + rows], int(width), turn, place).cliques(at_least)


class _Block:
    """Some roots and how their neighbours are joined to each other: adjacency uint64 [roots, 64 W, W]."""

    def __init__(self, graph: ZooGraph, roots: np.ndarray, words: int, turn: np.ndarray, place: np.ndarray) -> None:
        """place int32 [>= roots, V] is NONE everywhere, and again afterwards."""
        self.graph, self.roots, self.words = graph, roots, words
        start, neighbours = graph.adjacency
        degree = start[roots + 1] - start[roots]
        row, column = np.repeat(np.arange(len(roots)), degree), ranges(np.zeros_like(degree), degree)
        near = neighbours[ranges(start[roots], degree)]
        place[row, near] = column
        further = start[near + 1] - start[near]
        row2, column2 = np.repeat(row, further), np.repeat(column, further)
        met = place[row2, neighbours[ranges(start[near], further)]]
        place[row, near] = NONE
        joined = np.zeros((len(roots), words * _WORD, words * _WORD), bool)
        joined[row2[met >= 0], column2[met >= 0], met[met >= 0]] = True
        self.adjacency = _pack(joined)
        later = np.zeros((len(roots), words * _WORD), bool)
        earlier = np.zeros_like(later)
        later[row, column] = turn[near] > turn[roots[row]]
        earlier[row, column] = ~later[row, column]
        self.later, self.earlier = _pack(later), _pack(earlier)
        self.bit = _pack(np.eye(words * _WORD, dtype=bool))
        self.below = _pack(np.tri(words * _WORD, k=-1, dtype=bool))

    def cliques(self, at_least: int) -> Iterator[np.ndarray]:
        """Deepest first, so that few states wait."""
        everyone = np.arange(len(self.roots))
        waiting = [_States(everyone, np.zeros_like(self.later), self.later, self.earlier)]
        step = max(1, _CELLS // (8 * _WORD * self.words**2))
        while waiting:
            states = waiting.pop()
            if len(states.root) > step:
                waiting.append(states[step:])
                states = states[:step]
            chosen, still_open = 1 + _count(states.chosen), _count(states.open)
            whole = states[(still_open == 0) & (_count(states.closed) == 0) & (chosen >= at_least)]
            if len(whole.root):
                yield self._vertices(whole)
            states = states[(still_open > 0) & (chosen + still_open >= at_least)]
            if len(states.root):
                waiting.append(self._grow(states))

    def _grow(self, states: _States) -> _States:
        """Each state with one more vertex: every open one that is no neighbour of the pivot, the vertex with most open neighbours."""
        ties = _count(states.open[:, None] & self.adjacency[states.root])
        ties[~_unpack(states.open | states.closed)] = -1
        branches = states.open & ~self.adjacency[states.root, ties.argmax(1)]
        row, vertex = _unpack(branches).nonzero()
        before = branches[row] & self.below[vertex]
        near = self.adjacency[states.root[row], vertex]
        return _States(
            states.root[row],
            states.chosen[row] | self.bit[vertex],
            states.open[row] & ~before & near,
            (states.closed[row] | before) & near,
        )

    def _vertices(self, whole: _States) -> np.ndarray:
        start, neighbours = self.graph.adjacency
        member, roots = self.graph.member, self.roots[whole.root]
        vertices = np.full((len(roots), self.graph.members), NONE, np.int32)
        vertices[np.arange(len(roots)), member[roots]] = roots
        row, column = _unpack(whole.chosen).nonzero()
        chosen = neighbours[start[roots[row]] + column]
        vertices[row, member[chosen]] = chosen
        return vertices


def _pack(bools: np.ndarray) -> np.ndarray:
    """uint64 [..., W] of bool [..., 64 W]."""
    return np.packbits(bools, axis=-1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def _unpack(words: np.ndarray) -> np.ndarray:
    """bool [..., 64 W] of uint64 [..., W]."""
    octets = np.ascontiguousarray(words.astype("<u8", copy=False)).view(np.uint8)
    return np.unpackbits(octets, axis=-1, bitorder="little").view(bool)


def _count(words: np.ndarray) -> np.ndarray:
    """How many bits are set in all words [..., W]: sums of neighbouring 1, 2 and 4 bits, then of the eight octets."""
    twos = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    fours = (twos & np.uint64(0x3333333333333333)) + ((twos >> np.uint64(2)) & np.uint64(0x3333333333333333))
    octets = (fours + (fours >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return ((octets * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64).sum(-1)


def _strengths(graph: ZooGraph, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Size int32, smallest and mean r float64 of cliques [N, members]."""
    size = (vertices != NONE).sum(1, dtype=np.int32)
    smallest, total = np.full(len(vertices), np.inf), np.zeros(len(vertices))
    for one, other in combinations(range(vertices.shape[1]), 2):
        both = np.flatnonzero((vertices[:, one] != NONE) & (vertices[:, other] != NONE))
        r = graph.r_between(vertices[both, one], vertices[both, other])
        total[both] += r
        smallest[both] = np.minimum(smallest[both], r)
    return size, smallest, total / (size * (size - 1) / 2)
