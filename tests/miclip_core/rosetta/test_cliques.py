"""Maximal cliques, against all choices of vertices tried one by one, networkx, and zoos whose cliques are known."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from miclip_core.rosetta import cliques
from miclip_core.rosetta.buddies import NONE
from miclip_core.rosetta.cliques import Cliques, maximal_cliques
from miclip_core.rosetta.graph import ZooGraph
from tests.miclip_core.rosetta.multipartite import large_zoo, neighbours_of, r_of, random_zoo, shuffled, zoo

networkx = pytest.importorskip("networkx")


def tried(graph: ZooGraph, at_least: int) -> set[frozenset[int]]:
    """Every choice of one vertex or none per member, kept if all are neighbours and no vertex is a neighbour of all."""
    near = neighbours_of(graph)
    members = [[None, *np.flatnonzero(graph.member == m).tolist()] for m in range(graph.members)]
    found = set()
    for choice in product(*members):
        vertices = frozenset(v for v in choice if v is not None)
        whole = all(b in near[a] for a, b in combinations(vertices, 2))
        if len(vertices) >= at_least and whole and not set.intersection(*(near[v] for v in vertices)):
            found.add(vertices)
    return found


def sets(found: Cliques) -> list[frozenset[int]]:
    return [frozenset(v for v in row if v != NONE) for row in found.vertices.tolist()]


def copies(members: int, units: int) -> ZooGraph:
    """Unit u is a buddy of unit u in every other member."""
    pairs = combinations(range(members), 2)
    edges = [(a * units + u, b * units + u) for a, b in pairs for u in range(units)]
    return ZooGraph(np.repeat(np.arange(members), units), np.array(edges), np.full(len(edges), 0.5))


def test_a_triangle_with_a_tail_by_hand():
    # 0, 1 | 2, 3 | 4, 5
    graph = zoo([2, 2, 2], {(0, 2): 0.9, (0, 4): 0.7, (2, 4): 0.5, (0, 5): 0.8, (1, 3): 0.6})
    found = maximal_cliques(graph, at_least=2)
    assert found.vertices.tolist() == [[0, 2, 4], [0, NONE, 5], [1, 3, NONE]]
    assert found.size.tolist() == [3, 2, 2] and not found.truncated
    np.testing.assert_allclose(found.mean_r, [0.7, 0.8, 0.6], rtol=1e-15)
    assert found.min_r.tolist() == [0.5, 0.8, 0.6]
    assert maximal_cliques(graph).vertices.tolist() == [[0, 2, 4]]


@pytest.mark.parametrize("at_least", [2, 3, 4])
def test_cliques_are_those_found_by_trying_all_choices(at_least: int):
    some = 0
    for seed in range(40):
        graph = random_zoo(seed, most_members=4, most_units=5)
        found = sets(maximal_cliques(graph, at_least))
        assert len(found) == len(set(found))
        assert set(found) == tried(graph, at_least)
        some += bool(found)
    assert some > 8


def found_by_networkx(graph: ZooGraph) -> set[frozenset[int]]:
    return {
        frozenset(clique) for clique in networkx.find_cliques(networkx.Graph(graph.edges.tolist())) if len(clique) > 2
    }


def test_cliques_of_dense_graphs_are_those_of_networkx():
    for seed in range(10):
        graph = random_zoo(seed, most_members=6, most_units=12, most_buddies=6)
        found = sets(maximal_cliques(graph))
        assert len(found) == len(set(found)) and set(found) == found_by_networkx(graph)


def test_cliques_around_a_unit_with_hundreds_of_buddies_are_those_of_networkx():
    rng = np.random.default_rng(0)
    member = np.repeat(np.arange(4), [1, 100, 80, 60])  # vertex 0 has 240 neighbours: four words of bits
    edges = [(0, v) for v in range(1, 241)]
    edges += [(a, b) for a, b in combinations(range(1, 241), 2) if member[a] != member[b] and rng.random() < 0.1]
    graph = ZooGraph(member, np.array(edges), rng.random(len(edges)))
    found = sets(maximal_cliques(graph))
    assert len(found) == len(set(found)) > 1000 and set(found) == found_by_networkx(graph)


def test_strength_is_over_all_pairs_and_orders_what_is_found():
    for seed in range(20):
        graph = random_zoo(seed)
        found, known = maximal_cliques(graph, 2), r_of(graph)
        keys = []
        for row, vertices in enumerate(sets(found)):
            r = [known[frozenset(pair)] for pair in combinations(vertices, 2)]
            assert found.size[row] == len(vertices) and found.min_r[row] == min(r)
            assert found.mean_r[row] == pytest.approx(sum(r) / len(r), abs=1e-12)
            keys.append((-len(vertices), -round(sum(r) / len(r), 9), found.vertices[row].tolist()))
            assert all(graph.member[v] == found.vertices[row].tolist().index(v) for v in vertices)
        assert keys == sorted(keys)


def test_the_order_of_edges_decides_nothing_even_what_is_left_out():
    for seed in range(10):
        graph = random_zoo(seed)
        for most in (1, 3, 1000):
            one, other = maximal_cliques(graph, 2, most), maximal_cliques(shuffled(graph), 2, most)
            assert np.array_equal(one.vertices, other.vertices) and np.array_equal(one.mean_r, other.mean_r)


def test_copies_of_one_model_give_one_clique_per_unit():
    found = maximal_cliques(copies(members=9, units=7))
    assert found.vertices.tolist() == [[member * 7 + unit for member in range(9)] for unit in range(7)]


def test_with_more_cliques_than_asked_for_so_many_are_given_and_it_is_said():
    # each of 4 members has 3 units and all are buddies: 3^4 choices
    member = np.repeat(np.arange(4), 3)
    edges = np.array([(a, b) for a, b in combinations(range(12), 2) if member[a] != member[b]])
    graph = ZooGraph(member, edges, np.full(len(edges), 0.5))
    everything = maximal_cliques(graph, most=81)
    assert len(everything.size) == 81 and not everything.truncated
    some = maximal_cliques(graph, most=80)
    assert len(set(sets(some))) == 80 and some.truncated and set(sets(some)) < set(sets(everything))


@pytest.mark.parametrize("most", [1, 7, 50])
def test_what_is_left_out_is_smaller_or_weaker_than_all_that_is_given(most: int):
    graph = random_zoo(3, most_members=6, most_units=12, most_buddies=6)
    everything = maximal_cliques(graph)
    assert most < len(everything.size) <= cliques.LOOKED_AT * 50
    some = maximal_cliques(graph, most=most)
    if len(everything.size) <= cliques.LOOKED_AT * most:
        assert np.array_equal(some.vertices, everything.vertices[:most])
    assert some.truncated and len(some.size) == most and set(sets(some)) <= set(sets(everything))


def test_where_there_are_none():
    graph = zoo([2, 2], {(0, 2): 0.5})
    found = maximal_cliques(graph)
    assert found.vertices.shape == (0, 2) and len(found.mean_r) == 0 and not found.truncated
    assert maximal_cliques(zoo([2, 1], {}), 2).vertices.shape == (0, 2)


def test_what_makes_no_sense_is_refused():
    for at_least, most in ((1, 10), (3, 0)):
        with pytest.raises(ValueError, match="expected at least 2 and 1"):
            maximal_cliques(copies(3, 1), at_least, most)


@pytest.mark.slow
def test_planted_cliques_are_found_among_hundreds_of_thousands_of_edges():
    noise, planted = large_zoo(), copies(10, 2000)
    edges = np.unique(np.concatenate((noise.edges, planted.edges)), axis=0)
    found = maximal_cliques(ZooGraph(noise.member, edges, np.full(len(edges), 0.5)), at_least=4)
    whole = found.vertices[found.size == 10]
    assert len(edges) > 500_000 and not found.truncated
    assert np.array_equal(whole, np.arange(2000)[:, None] + 2000 * np.arange(10))
