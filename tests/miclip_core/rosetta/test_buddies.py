"""Best buddies, against definitions spelled out over full sorts of small matrices of r."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from miclip_core.rosetta.buddies import NONE, Buddies, best_buddies, self_buddies

Pairs = list[tuple[int, int, float, int, int]]


def nearest(r: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k columns of highest r of every row, of equal ones the first; minus infinity is no neighbour."""
    ids = np.full((len(r), k), NONE, np.int32)
    values = np.full((len(r), k), -np.inf)
    for row, line in enumerate(r.tolist()):
        best = sorted((-value, column) for column, value in enumerate(line) if value > -np.inf)[:k]
        for rank, (negative, column) in enumerate(best):
            ids[row, rank], values[row, rank] = column, -negative
    return ids, values


def expected(r: np.ndarray, k_a: int, k_b: int) -> Pairs:
    """Every pair that is in both lists, by looking at all of them."""
    of_a, of_b = nearest(r, k_a)[0].tolist(), nearest(r.T, k_b)[0].tolist()
    return [
        (j, k, float(r[j, k]), of_a[j].index(k), of_b[k].index(j))
        for j in range(r.shape[0])
        for k in range(r.shape[1])
        if k in of_a[j] and j in of_b[k]
    ]


def matched(r: np.ndarray, k_a: int, k_b: int, width: int = 8) -> Buddies:
    return best_buddies(*nearest(r, width), *nearest(r.T, width), k_a, k_b)


def listed(found: Buddies) -> Pairs:
    columns = found.a, found.b, found.r, found.rank_ab, found.rank_ba
    return list(zip(*(column.tolist() for column in columns)))


def tied(seed: int, units: tuple[int, int] = (13, 17)) -> np.ndarray:
    """Few values, so that most tie; a unit on either side is dead."""
    r = np.random.default_rng(seed).choice([-0.5, 0.0, 0.25, 0.5, 0.75], units)
    r[2], r[:, 4] = -np.inf, -np.inf
    return r


def test_three_units_by_hand():
    r = np.array([[0.9, 0.8, 0.1], [0.7, 0.95, 0.2], [0.6, 0.5, 0.3]])
    # nearest of a: 0 -> 0, 1 -> 1, 2 -> 0; nearest of b: 0 -> 0, 1 -> 1, 2 -> 2
    assert listed(matched(r, 1, 1, width=3)) == [(0, 0, 0.9, 0, 0), (1, 1, 0.95, 0, 0)]
    # second nearest of a: 1, 0, 1; of b: 1, 0, 1
    assert [pair[:2] for pair in listed(matched(r, 2, 2, width=3))] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [pair[:2] for pair in listed(matched(r, 1, 2, width=3))] == [(0, 0), (1, 1)]
    assert listed(matched(r, 3, 1, width=3))[-1] == (2, 2, 0.3, 2, 0)


@pytest.mark.parametrize(("k_a", "k_b"), [(1, 1), (1, 5), (5, 1), (3, 3), (8, 8)])
def test_buddies_are_those_pairs_that_full_sorts_list_twice(k_a: int, k_b: int):
    for seed in range(5):
        r = tied(seed)
        assert listed(matched(r, k_a, k_b)) == expected(r, k_a, k_b)


def test_the_order_of_members_decides_nothing():
    for seed in range(5):
        r = tied(seed)
        there, back = matched(r, 2, 4), matched(r.T, 4, 2)
        assert sorted((b, a, r, ba, ab) for a, b, r, ab, ba in listed(there)) == listed(back)


def test_a_pair_has_the_same_r_from_either_side_where_its_two_lists_differ_in_the_last_bit():
    ids = np.zeros((1, 1), np.int32)
    low, high = np.array([[0.3]]), np.array([[np.nextafter(0.3, 1)]])
    assert best_buddies(ids, low, ids, high, 1, 1).r == best_buddies(ids, high, ids, low, 1, 1).r


def test_with_one_neighbour_no_unit_has_two_buddies():
    for seed in range(5):
        found = matched(tied(seed), 1, 1)
        assert 0 < len(found) == len(set(found.a.tolist())) == len(set(found.b.tolist()))


def test_more_neighbours_only_add_buddies():
    r = tied(7)
    growing = [{pair[:2] for pair in listed(matched(r, k, k))} for k in range(1, 9)]
    assert all(less <= more for less, more in pairwise(growing)) and growing[0] < growing[-1]


def test_buddies_of_fewer_neighbours_are_had_from_those_of_more():
    for k_a, k_b in ((1, 1), (1, 4), (3, 2)):
        r = tied(8)
        assert listed(matched(r, 5, 5).within(k_a, k_b)) == listed(matched(r, k_a, k_b))


def test_a_model_and_its_copy_with_other_channel_numbers_match_by_that_permutation():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 200))
    order = rng.permutation(12)
    r = np.corrcoef(x, x[order])[:12, 12:]
    found = matched(r, 1, 1)
    assert np.array_equal(order[found.b], found.a) and len(found) == 12


def test_dead_units_have_no_buddies():
    found = matched(tied(0), 8, 8)
    assert 2 not in found.a and 4 not in found.b
    none = best_buddies(np.full((3, 2), NONE), np.zeros((3, 2)), np.full((4, 2), NONE), np.zeros((4, 2)), 2, 2)
    assert len(none) == 0 and none.a.dtype == np.int32 and none.rank_ab.dtype == np.int16


def test_of_one_member_each_pair_comes_once_and_no_unit_with_itself():
    for seed in range(5):
        r = tied(seed, (9, 9))
        r = np.maximum(r, r.T)
        np.fill_diagonal(r, -np.inf)
        found = listed(self_buddies(*nearest(r, 3), 3))
        assert found == [pair for pair in expected(r, 3, 3) if pair[0] < pair[1]]
        assert 2 * len(found) == len(expected(r, 3, 3))


def test_some_pairs_can_be_kept():
    found = matched(tied(1), 4, 4)
    strong = found.keep(found.r >= 0.6)
    assert listed(strong) == [pair for pair in listed(found) if pair[2] >= 0.6]
    assert 0 < len(strong) < len(found)


def test_what_cannot_be_answered_is_refused():
    ids, r = nearest(tied(0), 3)
    back = nearest(tied(0).T, 3)
    with pytest.raises(ValueError, match="k_a is 4, and the lists hold 3"):
        best_buddies(ids, r, *back, 4, 3)
    with pytest.raises(ValueError, match="k_b is 0"):
        best_buddies(ids, r, *back, 3, 0)
    with pytest.raises(ValueError, match="one r per neighbour"):
        best_buddies(ids, r[:, :2], *back, 1, 1)
    with pytest.raises(ValueError, match="the other member has units 0 to 12"):
        best_buddies(ids, r, back[0] + 20, back[1], 3, 3)
    with pytest.raises(ValueError, match="twice in one list"):
        best_buddies(np.zeros_like(ids), np.ones_like(r), *back, 3, 3)
    with pytest.raises(ValueError, match="1 neighbours is not finite"):
        best_buddies(ids[:1], np.array([[0.5, np.nan, 0.1]]), *back, 3, 3)
    with pytest.raises(ValueError, match="lists of the same images"):
        best_buddies(ids, r, back[0], back[1] + 0.1, 3, 3)
    with pytest.raises(ValueError, match="unit 1 is its own neighbour"):
        self_buddies(np.array([[1, 2], [0, 1], [0, 1]]), np.ones((3, 2)), 2)
