"""Entries of a dictionary, against cliques taken in a loop and a cluster written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from miclip_core.rosetta.buddies import NONE, Buddies
from miclip_core.rosetta.cliques import Cliques, maximal_cliques
from miclip_core.rosetta.clusters import concept_clusters
from miclip_core.rosetta.entries import Entries, entries_of_cliques, entries_of_clusters
from tests.miclip_core.rosetta.multipartite import r_of, random_zoo, star_tuples, zoo


def taken(cliques: Cliques, most: int) -> list[int]:
    """Each in turn, unless a vertex of it is in one before."""
    used: set[int] = set()
    rows: list[int] = []
    for row, vertices in enumerate(cliques.vertices.tolist()):
        inside = {v for v in vertices if v != NONE}
        if len(rows) < most and not inside & used:
            used |= inside
            rows.append(row)
    return rows


def groups(entries: Entries) -> list[list[int]]:
    return [entries.vertex[entries.entry == number].tolist() for number in range(len(entries.source))]


def test_the_entries_of_a_small_zoo_by_hand():
    # 0, 1 | 2, 3 | 4, 5: a triangle, an edge that shares a vertex with it, another edge
    graph = zoo([2, 2, 2], {(0, 2): 0.9, (0, 4): 0.5, (2, 4): 0.75, (0, 5): 0.8, (1, 3): 0.6})
    found = entries_of_cliques(maximal_cliques(graph, 2), graph, most=10)
    assert groups(found) == [[0, 2, 4], [1, 3]] and found.source.tolist() == [0, 2]
    np.testing.assert_allclose(found.mean_r, [0.7, 0.825, 0.625, 0.6, 0.6], rtol=1e-15)
    assert found.is_representative.tolist() == [False, True, False, True, False]
    assert groups(entries_of_cliques(maximal_cliques(graph, 2), graph, most=1)) == [[0, 2, 4]]
    assert groups(entries_of_cliques(maximal_cliques(graph, 2), graph, most=0)) == []


def test_entries_are_cliques_taken_in_turn():
    for seed in range(40):
        graph = random_zoo(seed, most_units=12)
        cliques = maximal_cliques(graph, 2)
        for most in (2, 1000):
            found = entries_of_cliques(cliques, graph, most)
            assert found.source.tolist() == taken(cliques, most)
            assert groups(found) == [sorted(set(cliques.vertices[row].tolist()) - {NONE}) for row in found.source]


def test_thousands_of_cliques_over_few_vertices_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("miclip_core.rosetta.entries._BLOCK", 500)
    rng = np.random.default_rng(0)
    vertices = rng.integers(0, 300, (5000, 3)).astype(np.int32) + 300 * np.arange(3, dtype=np.int32)
    vertices[rng.random(5000) < 0.3, 1] = NONE
    cliques = Cliques(vertices, (vertices != NONE).sum(1), np.ones(5000), np.ones(5000), False)
    graph = zoo([300, 300, 300], {})
    for most in (10, 200, 5000):
        found = entries_of_cliques(cliques, graph, most)
        assert found.source.tolist() == taken(cliques, most)
    assert found.source.max() > 1000 and np.isnan(found.mean_r).all()


def test_mean_r_and_representative_are_those_of_loops():
    for seed in range(20):
        graph, known = random_zoo(seed), r_of(random_zoo(seed))
        found = entries_of_cliques(maximal_cliques(graph, 3), graph, 100)
        for number, vertices in enumerate(groups(found)):
            means = [sum(known[frozenset((v, w))] for w in vertices if w != v) / (len(vertices) - 1) for v in vertices]
            np.testing.assert_allclose(found.mean_r[found.entry == number], means, rtol=1e-12)
            best = min(range(len(vertices)), key=lambda i: (-round(means[i], 9), vertices[i]))
            assert found.is_representative[found.entry == number].nonzero()[0].tolist() == [best]


def clustered():
    """Units 0-3 of an anchor that is the second member, so vertices 2-5; 6-8 of the third. Units 0 and 1 are one cluster."""
    graph = zoo(
        [2, 4, 3],
        {(0, 2): 0.5, (0, 3): 0.75, (1, 4): 0.9, (2, 6): 0.5, (3, 7): 0.25, (4, 7): 0.8, (0, 7): 0.125, (5, 8): 0.9},
    )
    tuples = star_tuples(graph, 1, [0, 2])
    inside = Buddies(*(np.array(x) for x in ([0, 2], [1, 3], [0.9, 0.9], [0, 0], [0, 0])))
    return graph, tuples, concept_clusters(np.sort(tuples.anchor) - 2, inside)


def test_the_entries_of_an_anchors_clusters():
    graph, tuples, clusters = clustered()
    assert sorted(tuples.anchor.tolist()) == [2, 3, 4] and clusters.cluster.tolist() == [0, 0, 1]
    found = entries_of_clusters(clusters, tuples.sets, graph, first_vertex=2, most=10)
    assert groups(found) == [[0, 2, 3, 6, 7], [1, 4, 7]] and found.source.tolist() == [0, 1]
    first = [(0.5 + 0.75 + 0.125) / 3, 0.5, (0.75 + 0.25) / 2, 0.5, (0.25 + 0.125) / 2]
    np.testing.assert_allclose(found.mean_r, [*first, 0.9, 0.85, 0.8], rtol=1e-15)
    assert found.is_representative.nonzero()[0].tolist() == [1, 5]  # of 2, 3 and 6 the smallest
    assert groups(entries_of_clusters(clusters, tuples.sets, graph, 2, most=1)) == [[0, 2, 3, 6, 7]]


def test_a_tuple_outside_all_clusters_is_refused():
    graph, tuples, _ = clustered()
    nothing = Buddies(*(np.zeros(0, np.int32) for _ in range(5)))
    with pytest.raises(ValueError, match="unit 2 of the anchor has a tuple and is in no cluster"):
        entries_of_clusters(concept_clusters(np.array([0, 1]), nothing), tuples.sets, graph, 2, 10)
    assert math.isnan(concept_clusters(np.array([0, 1]), nothing).min_r[0])
