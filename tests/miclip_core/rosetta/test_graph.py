"""The graph of a zoo, against three models written out by hand, sets in loops, and networkx."""

from __future__ import annotations

import math

import numpy as np
import pytest

from miclip_core.rosetta.buddies import Buddies
from miclip_core.rosetta.graph import ZooGraph, best_r, cores, join_buddies, universality
from tests.miclip_core.rosetta.multipartite import large_zoo, neighbours_of, r_of, random_zoo, shuffled, zoo

networkx = pytest.importorskip("networkx")


def buddies(*pairs: tuple[int, int, float]) -> Buddies:
    a, b, r = (np.array(column) for column in zip(*pairs))
    ranks = np.zeros(len(pairs), np.int16)
    return Buddies(a.astype(np.int32), b.astype(np.int32), r, ranks, ranks)


def three_models() -> ZooGraph:
    """Units 0-1 of the first, 2-4 of the second, 5-6 of the third; 4 has no buddy."""
    pairs = {
        (0, 1): buddies((0, 0, 0.9), (1, 1, 0.8)),
        (0, 2): buddies((0, 0, 0.7), (0, 1, 0.6)),
        (1, 2): buddies((0, 0, 0.5)),
    }
    return join_buddies([2, 3, 2], pairs)


def test_three_models_by_hand():
    graph = three_models()
    assert graph.members == 3 and graph.member.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert graph.edges.tolist() == [[0, 2], [0, 5], [0, 6], [1, 3], [2, 5]]
    assert graph.r.tolist() == [0.9, 0.7, 0.6, 0.8, 0.5]
    assert universality(graph).tolist() == [2, 1, 2, 1, 0, 2, 1]
    assert best_r(graph)[:4].tolist() == [0.9, 0.8, 0.9, 0.8] and math.isnan(best_r(graph)[4])
    assert cores(graph).tolist() == [2, 1, 2, 1, 0, 2, 1]


def test_the_order_in_which_edges_come_decides_nothing():
    for seed in range(20):
        graph = random_zoo(seed)
        other = shuffled(graph)
        assert np.array_equal(graph.edges, other.edges) and np.array_equal(graph.r, other.r)
        assert (graph.edges[:, 0] < graph.edges[:, 1]).all()


def test_neighbours_are_those_of_the_edges_ascending():
    for seed in range(20):
        graph = random_zoo(seed)
        start, neighbours = graph.adjacency
        for vertex, expected in neighbours_of(graph).items():
            assert neighbours[start[vertex] : start[vertex + 1]].tolist() == sorted(expected)


def test_r_of_any_two_vertices():
    graph = random_zoo(3)
    one, other = (grid.ravel() for grid in np.meshgrid(*[np.arange(len(graph.member))] * 2))
    known = r_of(graph)
    expected = [known.get(frozenset(pair), math.nan) for pair in zip(one.tolist(), other.tolist())]
    np.testing.assert_array_equal(graph.r_between(one, other), expected)
    nothing = zoo([1, 1], {})
    assert np.isnan(nothing.r_between(np.array([0]), np.array([1]))).all()


def test_the_edges_of_some_vertices_in_their_order():
    place, other, r = three_models().edges_of(np.array([5, 4, 0]))
    assert list(zip(place.tolist(), other.tolist(), r.tolist())) == [
        (0, 0, 0.7), (0, 2, 0.5), (2, 2, 0.9), (2, 5, 0.7), (2, 6, 0.6),
    ]  # fmt: skip
    assert [len(column) for column in three_models().edges_of(np.zeros(0, int))] == [0, 0, 0]


def test_parts_of_one_member_have_its_number_and_no_buddies_of_each_other():
    pairs = {(0, 2): buddies((0, 0, 0.9)), (1, 2): buddies((1, 0, 0.8))}
    graph = join_buddies([1, 2, 1], pairs, [0, 0, 1])
    assert graph.member.tolist() == [0, 0, 0, 1] and graph.edges.tolist() == [[0, 3], [2, 3]]
    assert universality(graph).tolist() == [1, 0, 1, 1]
    with pytest.raises(ValueError, match=r"edge \[0, 2\] is inside member 0"):
        join_buddies([1, 2, 1], {(0, 1): buddies((0, 1, 0.9))}, [0, 0, 1])


def test_universality_counts_members_not_buddies():
    for seed in range(30):
        graph = random_zoo(seed)
        expected = [len({int(graph.member[n]) for n in near}) for near in neighbours_of(graph).values()]
        assert universality(graph).tolist() == expected


def test_best_r_is_the_largest_of_a_vertex():
    graph = random_zoo(5)
    known = r_of(graph)
    expected = [max((r for pair, r in known.items() if v in pair), default=math.nan) for v in range(len(graph.member))]
    np.testing.assert_array_equal(best_r(graph), expected)


def test_cores_are_those_of_networkx():
    for seed in range(40):
        graph = random_zoo(seed, most_units=20, most_buddies=6)
        theirs = networkx.Graph(graph.edges.tolist())
        theirs.add_nodes_from(range(len(graph.member)))
        expected = networkx.core_number(theirs)
        assert cores(graph).tolist() == [expected[vertex] for vertex in range(len(graph.member))]


def test_restricting_leaves_the_edges_between_kept_vertices():
    graph = random_zoo(6)
    kept = np.arange(len(graph.member)) % 3 > 0
    left = graph.restrict(kept)
    assert r_of(left) == {pair: r for pair, r in r_of(graph).items() if all(v % 3 for v in pair)}
    assert len(left.edges) > 0


def test_a_graph_without_edges_or_vertices():
    for graph in (zoo([2, 1], {}), zoo([], {})):
        n = len(graph.member)
        assert universality(graph).tolist() == cores(graph).tolist() == [0] * n
        assert np.isnan(best_r(graph)).all() and graph.adjacency[0].tolist() == [0] * (n + 1)


def test_what_is_no_graph_of_a_zoo_is_refused():
    member = np.array([0, 0, 1])
    with pytest.raises(ValueError, match=r"edge \[0, 1\] is inside member 0"):
        ZooGraph(member, np.array([[0, 2], [1, 0]]), np.ones(2))
    with pytest.raises(ValueError, match=r"edge \[0, 2\] is given twice"):
        ZooGraph(member, np.array([[0, 2], [1, 2], [2, 0]]), np.ones(3))
    with pytest.raises(ValueError, match="there are 3 from 0 on"):
        ZooGraph(member, np.array([[0, 3]]), np.ones(1))
    with pytest.raises(ValueError, match="one finite r"):
        ZooGraph(member, np.array([[0, 2]]), np.array([np.nan]))
    with pytest.raises(ValueError, match="beyond their 2 and 3"):
        join_buddies([2, 3], {(0, 1): buddies((2, 0, 0.5))})
    with pytest.raises(ValueError, match="inside member 0"):
        join_buddies([2, 3], {(0, 0): buddies((0, 1, 0.5))})
    with pytest.raises(ValueError, match="given twice"):
        join_buddies([2, 3], {(0, 1): buddies((0, 1, 0.5)), (1, 0): buddies((1, 0, 0.5))})


def test_hundreds_of_thousands_of_edges_are_no_trouble():
    graph = large_zoo()
    assert len(graph.edges) > 440_000
    assert (universality(graph) == 9).all()
    degree = np.bincount(graph.edges.ravel())
    assert (cores(graph) <= degree).all() and cores(graph).min() > 30
