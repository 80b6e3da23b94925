"""Components, against networkx, a chain whose length is known, and density counted over all pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from miclip_core.rosetta.components import components, number_components
from miclip_core.rosetta.graph import ZooGraph
from tests.miclip_core.rosetta.multipartite import large_zoo, random_zoo, shuffled, zoo

networkx = pytest.importorskip("networkx")


def chain(n: int, seed: int = 0) -> ZooGraph:
    """One path of n vertices with numbers in random order, of two members in turn."""
    order = np.random.default_rng(seed).permutation(n)
    member = np.empty(n, np.int32)
    member[order] = np.arange(n) % 2
    return ZooGraph(member, np.stack((order[:-1], order[1:]), 1), np.full(n - 1, 0.5))


def by_size(graph: ZooGraph) -> list[set[int]]:
    theirs = networkx.Graph(graph.edges.tolist())
    return sorted(networkx.connected_components(theirs), key=lambda found: (-len(found), min(found)))


def test_components_of_three_models_by_hand():
    # 0, 1 | 2, 3, 4 | 5, 6: a triangle with a tail, a pair, and one alone
    graph = zoo([2, 3, 2], {(0, 2): 0.9, (0, 5): 0.7, (0, 6): 0.6, (2, 5): 0.5, (1, 3): 0.8})
    found = components(graph)
    assert found.of_vertex.tolist() == [0, 1, 0, 1, -1, 0, 0]
    assert found.units.tolist() == [4, 2] and found.members.tolist() == [3, 2]
    assert found.density.tolist() == [4 / 5, 1.0]  # 6 pairs of vertices, of which 5-6 is inside one member
    assert found.longest_path.tolist() == [2, 1] and found.is_path_exact.all()


def test_components_are_those_of_networkx_with_their_diameters():
    several = 0
    for seed in range(60):
        graph = random_zoo(seed, most_members=4, most_units=12, most_buddies=2)
        found, theirs = components(graph), networkx.Graph(graph.edges.tolist())
        expected = by_size(graph)
        several += len(expected) > 1
        assert len(found.units) == len(expected)
        assert (found.of_vertex == -1).sum() == len(graph.member) - sum(map(len, expected))
        for number, vertices in enumerate(expected):
            assert set(np.flatnonzero(found.of_vertex == number).tolist()) == vertices
            pairs = [(a, b) for a, b in combinations(vertices, 2) if graph.member[a] != graph.member[b]]
            part = theirs.subgraph(vertices)
            assert found.density[number] == part.number_of_edges() / len(pairs)
            assert found.longest_path[number] == networkx.diameter(part)
            assert found.members[number] == len({int(graph.member[v]) for v in vertices})
    assert several > 10


def test_a_chain_of_many_vertices_is_measured_in_full():
    found = components(chain(300))
    assert found.longest_path.tolist() == [299] and found.is_path_exact.all()


def test_beyond_a_size_the_longest_path_is_a_bound_and_says_so():
    for seed in range(5):
        graph = random_zoo(seed, most_members=3, most_units=150, most_buddies=1)
        chained, whole = chain(200, seed), components(graph)
        bounded = components(graph, exact_up_to=0)
        assert (bounded.longest_path <= whole.longest_path).all()
        assert (bounded.is_path_exact == (whole.units <= 64)).all()
        assert np.array_equal(bounded.longest_path[bounded.is_path_exact], whole.longest_path[bounded.is_path_exact])
        # on a tree the vertex that is farthest from any is an end of a longest path
        assert components(chained, exact_up_to=64).longest_path.tolist() == [199]
    assert not components(chained, exact_up_to=64).is_path_exact.any()


def test_large_and_small_components_side_by_side():
    graph = chain(150)
    member = np.concatenate((graph.member, [0, 1, 0]))
    both = ZooGraph(member, np.concatenate((graph.edges, [[150, 151]])), np.full(150, 0.5))
    for exact_up_to, exact in ((4096, [True, True]), (100, [False, True])):
        found = components(both, exact_up_to)
        assert found.units.tolist() == [150, 2] and found.longest_path.tolist() == [149, 1]
        assert found.is_path_exact.tolist() == exact and found.of_vertex[152] == -1


def test_the_order_of_edges_decides_nothing():
    graph = random_zoo(11, most_units=100, most_buddies=1)
    one, other = components(graph, 64), components(shuffled(graph), 64)
    for name in ("of_vertex", "units", "density", "longest_path"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_no_edges_no_components():
    found = components(zoo([2, 1], {}))
    assert found.of_vertex.tolist() == [-1, -1, -1] and len(found.units) == len(found.density) == 0
    number, sizes = number_components(3, np.zeros((0, 2), np.int64))
    assert number.tolist() == [0, 1, 2] and sizes.tolist() == [1, 1, 1]


def test_one_giant_component_is_measured_at_scale():
    found = components(large_zoo())
    assert found.units.tolist() == [20_000] and found.members.tolist() == [10]
    assert 3 <= found.longest_path[0] <= 6 and not found.is_path_exact[0]
