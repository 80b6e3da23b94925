"""Clusters of units, against sets merged in loops and complete linkage over full matrices."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from miclip_core.rosetta.buddies import Buddies
from miclip_core.rosetta.clusters import Clusters, complete_linkage, concept_clusters

Edges = dict[tuple[int, int], float]


def buddies(edges: Edges) -> Buddies:
    a, b = np.reshape(sorted(edges), (-1, 2)).astype(np.int32).T
    ranks = np.zeros(len(a), np.int16)
    return Buddies(a, b, np.array([edges[pair] for pair in sorted(edges)]), ranks, ranks)


def random_edges(seed: int, n: int, share: float) -> Edges:
    rng = np.random.default_rng(seed)
    return {pair: float(rng.integers(1, 9)) / 8 for pair in combinations(range(n), 2) if rng.random() < share}


def sets(found: Clusters) -> list[set[int]]:
    return [set(found.units[found.cluster == number].tolist()) for number in range(len(found.size))]


def merged(units: set[int], edges: Edges) -> list[set[int]]:
    """Components by merging sets until no edge joins two."""
    groups = [{unit} for unit in units]
    for a, b in edges:
        if a in units and b in units:
            touched = [group for group in groups if a in group or b in group]
            groups = [group for group in groups if group not in touched] + [set().union(*touched)]
    return sorted(groups, key=lambda group: (-len(group), min(group)))


def linked(n: int, edges: Edges) -> set[frozenset[int]]:
    """Complete linkage, by looking at all pairs of clusters before every step."""
    clusters = [frozenset([unit]) for unit in range(n)]

    def closeness(pair: tuple[frozenset[int], frozenset[int]]) -> float:
        return min(edges.get((min(a, b), max(a, b)), -math.inf) for a in pair[0] for b in pair[1])

    while True:
        pairs = sorted(combinations(sorted(clusters, key=min), 2), key=lambda pair: -closeness(pair))
        if not pairs or closeness(pairs[0]) == -math.inf:
            return set(clusters)
        clusters = [cluster for cluster in clusters if cluster not in pairs[0]] + [pairs[0][0] | pairs[0][1]]


def test_five_units_by_hand():
    edges = {(1, 4): 0.5, (4, 7): 0.75, (2, 9): 0.9, (3, 7): 0.95}  # 3 is no unit of any tuple
    found = concept_clusters(np.array([9, 7, 4, 2, 1, 8]), buddies(edges))
    assert found.units.tolist() == [1, 2, 4, 7, 8, 9] and found.cluster.tolist() == [0, 1, 0, 0, 2, 1]
    assert found.size.tolist() == [3, 2, 1] and found.density.tolist() == [2 / 3, 1.0, 1.0]
    assert found.min_r[:2].tolist() == [0.5, 0.9] and math.isnan(found.min_r[2])
    assert not found.is_split.any()


def test_clusters_are_a_partition_into_components():
    for seed in range(40):
        edges = random_edges(seed, 24, 0.06)
        units = np.random.default_rng(seed).permutation(24)[:18]
        found = concept_clusters(units, buddies(edges))
        expected = merged(set(units.tolist()), edges)
        assert sets(found) == expected
        for number, group in enumerate(expected):
            inside = [r for pair, r in edges.items() if set(pair) <= group]
            assert found.size[number] == len(group)
            if len(group) > 1:
                assert found.min_r[number] == min(inside)
                assert found.density[number] == 2 * len(inside) / (len(group) * (len(group) - 1))


def test_a_long_chain_is_cut_into_cliques_and_dense_groups_are_not():
    chain = {(unit, unit + 1): 0.5 + 0.01 * unit for unit in range(21)}  # 22 units
    found = concept_clusters(np.arange(22), buddies(chain))
    assert found.size.max() == 2 and found.is_split.all()  # from the strongest end, every second edge stays
    assert sets(found) == [{unit, unit + 1} for unit in range(0, 22, 2)]
    assert found.density.tolist() == [1.0] * 11 and found.min_r[0] == 0.5
    short = concept_clusters(np.arange(20), buddies({pair: r for pair, r in chain.items() if pair[1] < 20}))
    assert short.size.tolist() == [20] and not short.is_split.any()
    dense = dict.fromkeys(combinations(range(30), 2), 0.5)
    assert concept_clusters(np.arange(30), buddies(dense)).size.tolist() == [30]


def test_only_the_chain_is_cut_where_there_is_also_a_group():
    edges = {(unit, unit + 1): 0.5 for unit in range(0, 30, 2)} | {(unit, unit + 1): 0.75 for unit in range(1, 30, 2)}
    edges |= {(40, 41): 0.5, (41, 42): 0.5}  # three units, two edges: not long enough to be cut
    found = concept_clusters(np.r_[np.arange(31), 40:43], buddies(edges))
    assert sets(found)[0] == {40, 41, 42} and not found.is_split[0] and found.density[0] == 2 / 3
    assert found.is_split[1:].all() and sets(found)[1:-1] == [{unit, unit + 1} for unit in range(1, 31, 2)]
    assert sets(found)[-1] == {0} and math.isnan(found.min_r[-1])


def test_complete_linkage_is_that_of_full_matrices():
    for seed in range(60):
        n = 4 + seed % 12
        edges = random_edges(seed, n, 0.3 + 0.01 * seed)
        pairs = buddies(edges)
        smallest = complete_linkage(n, np.stack((pairs.a, pairs.b), 1), pairs.r)
        found = {frozenset(np.flatnonzero(smallest == unit).tolist()) for unit in smallest.tolist()}
        assert found == linked(n, edges)
        assert all(smallest[unit] == min(group) for group in found for unit in group)
        assert all(pair in edges for group in found for pair in combinations(sorted(group), 2))


def test_the_order_of_units_and_edges_decides_nothing():
    rng = np.random.default_rng(0)
    for seed in range(10):
        pairs = buddies(random_edges(seed, 40, 0.04))
        order = rng.permutation(len(pairs))
        one = concept_clusters(np.arange(40), pairs, split_above=5)
        other = concept_clusters(rng.permutation(40), pairs.keep(order), split_above=5)
        assert np.array_equal(one.cluster, other.cluster) and np.array_equal(one.density, other.density)
        assert one.is_split.any()


def test_no_units_no_clusters_and_none_twice():
    assert len(concept_clusters(np.zeros(0, np.int32), buddies({(0, 1): 0.5})).size) == 0
    assert concept_clusters(np.arange(2), buddies({})).size.tolist() == [1, 1]
    with pytest.raises(ValueError, match="1 units are given twice"):
        concept_clusters(np.array([3, 4, 3]), buddies({(3, 4): 0.5}))


def test_a_chain_through_tens_of_thousands_of_units_is_cut_in_seconds():
    rng = np.random.default_rng(1)
    n = 20_000
    a = np.repeat(np.arange(n), 3)
    b = (a + rng.integers(1, 20, len(a))) % n
    pairs = np.unique(np.sort(np.stack((a, b), 1), axis=1), axis=0)
    ranks = np.zeros(len(pairs), np.int16)
    both = Buddies(pairs[:, 0], pairs[:, 1], rng.random(len(pairs)), ranks, ranks)
    found = concept_clusters(np.arange(n), both)
    assert found.is_split.all() and (found.density == 1).all() and found.size.sum() == n
