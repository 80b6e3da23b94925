"""Graphs of made-up zoos: random ones, and how they look to code that knows sets and loops only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from miclip_core.rosetta.graph import ZooGraph
from miclip_core.rosetta.tuples import Star, Tuples


def random_zoo(seed: int, most_members: int = 5, most_units: int = 8, most_buddies: int = 4) -> ZooGraph:
    """Members of 1 to so many units, each of which is joined to up to so many units of every later member; few values of r."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, most_units + 1, rng.integers(2, most_members + 1))
    first, k = np.cumsum(sizes) - sizes, int(rng.integers(1, most_buddies + 1))
    edges = [
        (first[a] + u, first[b] + v)
        for a, b in combinations(range(len(sizes)), 2)
        for u in range(sizes[a])
        for v in rng.choice(sizes[b], min(k, sizes[b]), replace=False)
        if rng.random() < 0.8
    ]
    return ZooGraph(
        np.repeat(np.arange(len(sizes)), sizes), np.reshape(edges, (-1, 2)), rng.integers(1, 9, len(edges)) / 8
    )


def large_zoo(members: int = 10, units: int = 2000, k: int = 5, seed: int = 0) -> ZooGraph:
    """Every unit has about k buddies in each other member, drawn at random."""
    rng, edges = np.random.default_rng(seed), []
    for a, b in combinations(range(members), 2):
        edges += [np.stack((a * units + np.arange(units), b * units + rng.permutation(units)), 1) for _ in range(k)]
    found = np.unique(np.concatenate(edges), axis=0)
    return ZooGraph(np.repeat(np.arange(members), units), found, rng.random(len(found)))


def zoo(sizes: Sequence[int], edges: dict[tuple[int, int], float]) -> ZooGraph:
    """A graph written out by hand."""
    return ZooGraph(
        np.repeat(np.arange(len(sizes)), sizes), np.reshape(list(edges), (-1, 2)), np.array(list(edges.values()))
    )


def shuffled(graph: ZooGraph, seed: int = 0) -> ZooGraph:
    """The same graph, made of its edges in another order and with half of them turned around."""
    rng = np.random.default_rng(seed)
    order, turned = rng.permutation(len(graph.edges)), rng.random(len(graph.edges)) < 0.5
    edges = np.where(turned[:, None], graph.edges[:, ::-1], graph.edges)[order]
    return ZooGraph(graph.member, edges, graph.r[order])


def r_of(graph: ZooGraph) -> dict[frozenset[int], float]:
    """r of every edge, by its two vertices."""
    return {frozenset(edge): r for edge, r in zip(graph.edges.tolist(), graph.r.tolist())}


def neighbours_of(graph: ZooGraph) -> dict[int, set[int]]:
    """Of every vertex, with and without edges."""
    found: dict[int, set[int]] = {vertex: set() for vertex in range(len(graph.member))}
    for a, b in graph.edges.tolist():
        found[a].add(b)
        found[b].add(a)
    return found


def star_tuples(
    graph: ZooGraph, anchor: int, others: Sequence[int], full: bool = False, most: int = 1_000_000
) -> Tuples:
    """Tuples around all vertices of a member."""
    star = Star(graph, np.flatnonzero(graph.member == anchor), others)
    return star.all_tuples(most) if full else star.best_tuples(most)
