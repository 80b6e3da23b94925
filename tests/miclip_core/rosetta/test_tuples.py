"""Tuples around an anchor, against three models written out by hand and products of lists."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from miclip_core.rosetta.graph import ZooGraph
from miclip_core.rosetta.tuples import Star, Tuples, jaccard
from tests.miclip_core.rosetta.multipartite import neighbours_of, r_of, random_zoo, shuffled, star_tuples, zoo


def three_models() -> ZooGraph:
    """Units 0-2 of the anchor, 3-5 and 6-7 of the others; unit 1 has no buddy in the last."""
    return zoo(
        [3, 3, 2],
        {(0, 3): 0.5, (0, 4): 0.75, (0, 6): 0.5, (1, 5): 0.9, (2, 5): 0.75, (2, 6): 0.625, (2, 7): 0.625, (3, 6): 0.8},
    )


def listed(found: Tuples) -> list[tuple[int, ...]]:
    return [(anchor, *others) for anchor, others in zip(found.anchor.tolist(), found.vertices.tolist())]


def expected(graph: ZooGraph, anchor: int, others: list[int], full: bool) -> list[tuple[int, ...]]:
    """All products of lists of buddies, best first; or the first of each unit, by lists that are sorted."""
    near, known, rows = neighbours_of(graph), r_of(graph), []
    for unit in np.flatnonzero(graph.member == anchor).tolist():
        lists = [
            sorted((-known[frozenset((unit, v))], v) for v in near[unit] if graph.member[v] == other)
            for other in others
        ]
        for choice in product(*lists):
            r = [-negative for negative, _ in choice]
            rows.append((-round(sum(r) / len(r), 9), -min(r), unit, *(v for _, v in choice)))
            if not full:
                break
    return [row[2:] for row in sorted(rows)]


def test_three_models_by_hand():
    found = star_tuples(three_models(), 0, [1, 2])
    assert listed(found) == [(2, 5, 6), (0, 4, 6)]
    assert found.r.tolist() == [[0.75, 0.625], [0.75, 0.5]]
    assert found.alternatives.tolist() == [[0, 1], [1, 0]]
    assert found.mean_r.tolist() == [0.6875, 0.625] and found.min_r.tolist() == [0.625, 0.5]
    assert not found.truncated
    every = star_tuples(three_models(), 0, [1, 2], full=True)
    assert listed(every) == [(2, 5, 6), (2, 5, 7), (0, 4, 6), (0, 3, 6)]
    assert every.alternatives.tolist() == [[0, 1], [0, 1], [1, 0], [1, 0]]


def test_tuples_are_those_of_sorted_lists():
    some = 0
    for seed in range(60):
        graph = random_zoo(seed)
        for anchor in range(graph.members):
            others = [m for m in range(graph.members) if m != anchor]
            for full in (False, True):
                found = star_tuples(graph, anchor, others, full)
                assert listed(found) == expected(graph, anchor, others, full)
                some += len(found)
    assert some > 500


def test_tuples_of_one_other_member_are_the_buddies_themselves():
    graph = random_zoo(4)
    found = star_tuples(graph, 0, [1], full=True)
    of_both = (graph.member[graph.edges] == [0, 1]).all(1)
    assert sorted(listed(found)) == list(map(tuple, graph.edges[of_both].tolist())) and len(found) > 3


def test_the_order_of_edges_decides_nothing_even_what_is_left_out():
    for seed in range(20):
        graph = random_zoo(seed)
        others = list(range(1, graph.members))
        for most in (1, 5, 1000):
            one, other = (star_tuples(g, 0, others, True, most) for g in (graph, shuffled(graph)))
            assert listed(one) == listed(other) and np.array_equal(one.mean_r, other.mean_r)


def test_with_more_tuples_than_asked_for_those_around_the_best_units_are_given_and_it_is_said():
    everything = star_tuples(three_models(), 0, [1, 2], True, most=4)
    assert len(everything) == 4 and not everything.truncated
    three = star_tuples(three_models(), 0, [1, 2], True, most=3)
    assert listed(three) == [(2, 5, 6), (2, 5, 7), (0, 4, 6)] and three.truncated
    assert star_tuples(three_models(), 0, [1, 2], False, most=2).truncated is False
    one = star_tuples(three_models(), 0, [1, 2], False, most=1)
    assert listed(one) == [(2, 5, 6)] and one.truncated


def test_more_combinations_than_a_number_can_hold_are_no_trouble():
    # a unit with 16 buddies in each of 16 members has 2^64 tuples
    edges = {(0, 1 + v): 0.5 for v in range(256)}
    found = star_tuples(zoo([1, *[16] * 16], edges), 0, list(range(1, 17)), True, most=1000)
    assert len(set(listed(found))) == 1000 and found.truncated
    assert listed(found)[0] == (0, *range(1, 257, 16)) and (found.alternatives == 15).all()


def test_where_no_unit_has_a_buddy_in_every_other_member():
    found = star_tuples(zoo([2, 1, 1], {(0, 2): 0.5, (1, 3): 0.5}), 0, [1, 2])
    assert len(found) == 0 and found.vertices.shape == found.r.shape == (0, 2) and not found.truncated


def test_what_is_no_anchor_with_others_is_refused():
    for others in ([], [0, 1], [1, 1]):
        with pytest.raises(ValueError, match="expected other members, each once"):
            star_tuples(three_models(), 0, others)


def test_tuples_around_two_anchors_are_compared_as_sets():
    # 0-2-4 is the best of all three; around the first and the second 1-3-5 too, but 5 has a better buddy in the first
    graph = zoo(
        [2, 2, 2],
        {(0, 2): 0.9, (0, 4): 0.9, (2, 4): 0.9, (1, 3): 0.5, (1, 5): 0.5, (3, 5): 0.5, (0, 5): 0.7},
    )
    first, second, third = (star_tuples(graph, m, [n for n in range(3) if n != m]) for m in range(3))
    assert listed(first) == [(0, 2, 4), (1, 3, 5)] and listed(third) == [(4, 0, 2), (5, 0, 3)]
    assert jaccard(first.sets, second.sets) == 1.0 == jaccard(second.sets, first.sets)
    assert jaccard(first.sets, third.sets) == 1 / 3 == jaccard(third.sets, first.sets)
    fewer = star_tuples(graph, 0, [1])
    assert jaccard(first.sets, fewer.sets) == 0.0
    none = star_tuples(zoo([1, 1, 1], {}), 0, [1, 2])
    assert jaccard(first.sets, none.sets) == 0.0 and math.isnan(jaccard(none.sets, none.sets))


def test_some_units_of_a_member_are_an_anchor_and_all_of_theirs_with_a_tuple_are_known_however_few_are_listed():
    graph = three_models()
    assert Star(graph, np.array([2, 1, 0]), [1, 2]).units.tolist() == [0, 2]
    star = Star(graph, np.array([0, 1]), [1, 2])
    assert star.units.tolist() == [0] and listed(star.best_tuples()) == [(0, 4, 6)]
    assert len(star.all_tuples(most=1)) == 1 and star.all_tuples(most=1).truncated
