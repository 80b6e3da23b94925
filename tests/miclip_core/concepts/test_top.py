"""Running top lists, against sorted Python lists and tables small enough to read."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from miclip_core.concepts.top import NONE, TopScores

INF, NAN = math.inf, math.nan


def best(scores: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
    """(column, score) of the k best of each row, by sorting them all."""
    rows = []
    for row in scores.tolist():
        have = [(-score, column) for column, score in enumerate(row) if not math.isnan(score) and score != -INF]
        rows.append([(column, -negative) for negative, column in sorted(have)[:k]])
    return rows


def listed(lists) -> list[list[tuple[int, float]]]:
    """The same of lists, of which what is not there must stand last."""
    rows = []
    for ids, scores in zip(lists.ids_NK.tolist(), lists.scores_NK.tolist()):
        n = sum(i != NONE for i in ids)
        assert ids[n:] == [NONE] * (len(ids) - n) and scores[n:] == [-INF] * (len(ids) - n)
        rows.append(list(zip(ids[:n], scores[:n])))
    return rows


def assert_is_best(top: TopScores, scores: np.ndarray, k: int, alive: np.ndarray | None = None) -> None:
    assert listed(top.concepts_of_unit) == best(scores, k)
    located = scores if alive is None else np.where(alive[:, None], scores, np.nan)
    assert listed(top.units_of_concept) == best(located.T, k)


def cut(n: int, rng: np.random.Generator, pieces: int) -> list[tuple[int, int]]:
    """Neighbouring ranges of random lengths, some of none, in random order."""
    ends = np.sort(rng.integers(0, n + 1, pieces - 1))
    ranges = list(zip([0, *ends.tolist()], [*ends.tolist(), n]))
    return [ranges[i] for i in rng.permutation(pieces)]


def fill(top: TopScores, scores: np.ndarray, rng: np.random.Generator, pieces: int = 1) -> TopScores:
    for u0, u1 in cut(scores.shape[0], rng, pieces):
        for c0, c1 in cut(scores.shape[1], rng, pieces):
            top.add(u0, c0, torch.from_numpy(scores[u0:u1, c0:c1]))
    return top


def tied_scores(rng: np.random.Generator, units: int = 17, concepts: int = 23) -> np.ndarray:
    """Few values, so that most tie, among them infinities and what is no score; a unit and a concept have none at all."""
    scores = rng.choice(np.float32([-1, -0.5, 0, 0.5, 1, INF, -INF, NAN]), (units, concepts))
    scores[3], scores[:, 5] = NAN, -INF
    return scores


def test_a_table_that_can_be_read():
    top = TopScores(3, 4, tau=2)
    top.add(0, 0, torch.tensor([[0.1, 0.9, 0.9, 0.2], [NAN, NAN, NAN, NAN], [0.9, 0.9, 0.3, NAN]]))
    assert listed(top.concepts_of_unit) == best(np.float32([[-1, 0.9, 0.9, -2], [NAN] * 4, [0.9, 0.9, -1, -2]]), 2)
    assert top.concepts_of_unit.ids_NK.tolist() == [[1, 2], [NONE, NONE], [0, 1]]
    assert top.units_of_concept.ids_NK.tolist() == [[2, 0], [0, 2], [0, 2], [0, NONE]]


@pytest.mark.parametrize("tau", [1, 2, 5, 30])
@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_blocks_in_any_order_give_what_sorting_gives_even_where_all_tie(tau: int, pieces: int):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scores, alive = tied_scores(rng), rng.random(17) < 0.7
        assert_is_best(fill(TopScores(17, 23, tau), scores, rng, pieces), scores, tau)
        living = fill(TopScores(17, 23, tau, torch.from_numpy(alive)), scores, rng, pieces)
        assert_is_best(living, scores, tau, alive)


def test_states_of_shards_merge_to_that_of_the_whole_in_any_order():
    rng = np.random.default_rng(0)
    for columns in (False, True):
        scores, shards = tied_scores(rng), []
        for start, stop in cut(scores.shape[columns], rng, 4):
            shard = TopScores(17, 23, 3)
            block = scores[:, start:stop] if columns else scores[start:stop]
            shard.add(0 if columns else start, start if columns else 0, torch.from_numpy(block.copy()))
            shards.append(shard)
        first, *others = shards
        for other in others:
            first.merge(other)
        assert_is_best(first, scores, 3)


def test_a_shorter_list_is_the_beginning_of_a_longer_one():
    rng = np.random.default_rng(1)
    scores = tied_scores(rng)
    tops = [fill(TopScores(17, 23, tau), scores, rng, 3) for tau in range(1, 9)]
    for short, long in pairwise(tops):
        for name in ("concepts_of_unit", "units_of_concept"):
            a, b = getattr(short, name), getattr(long, name)
            assert torch.equal(a.ids_NK, b.ids_NK[:, :-1]) and torch.equal(a.scores_NK, b.scores_NK[:, :-1])


def test_other_numbers_for_units_and_concepts_give_the_same_lists_under_those_numbers():
    rng = np.random.default_rng(2)
    scores = rng.permutation(17 * 23).reshape(17, 23).astype(np.float32)  # no two tie, for ties go by the numbers
    units, concepts = rng.permutation(17), rng.permutation(23)
    plain = fill(TopScores(17, 23, 4), scores, rng)
    moved = fill(TopScores(17, 23, 4), scores[units][:, concepts], rng)
    assert (concepts[moved.concepts_of_unit.ids_NK] == plain.concepts_of_unit.ids_NK.numpy()[units]).all()
    assert (units[moved.units_of_concept.ids_NK] == plain.units_of_concept.ids_NK.numpy()[concepts]).all()


def test_scores_are_compared_as_float32():
    top = TopScores(1, 2, 1)
    top.add(0, 0, torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64))
    assert top.concepts_of_unit.ids_NK.tolist() == [[0]]
    half = TopScores(1, 3, 1)
    half.add(0, 0, torch.tensor([[0.5, 2.0, 1.0]], dtype=torch.bfloat16))
    assert half.concepts_of_unit.scores_NK.tolist() == [[2.0]]


def test_the_block_that_is_given_stays_as_it_was():
    scores = torch.from_numpy(tied_scores(np.random.default_rng(3)))
    before = scores.clone()
    TopScores(17, 23, 3).add(0, 0, scores)
    assert torch.equal(scores.nan_to_num(nan=7), before.nan_to_num(nan=7))


def test_a_block_that_comes_twice_is_refused():
    top, other = TopScores(4, 4, 2), TopScores(4, 4, 2)
    top.add(0, 0, torch.eye(4))
    other.add(0, 0, torch.eye(4))
    with pytest.raises(ValueError, match="row 0 and column 0 were scored twice"):
        top.merge(other)
    with pytest.raises(ValueError, match="scored twice"):
        top.add(2, 2, torch.eye(2))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="tau is 0"):
        TopScores(2, 2, 0)
    with pytest.raises(ValueError, match="one bool for each of 2 units"):
        TopScores(2, 2, 1, torch.ones(3, dtype=torch.bool))
    top = TopScores(2, 2, 1)
    for place in ((1, 0), (0, 1), (-1, 0)):
        with pytest.raises(ValueError, match="leave the table of 2 x 2"):
            top.add(*place, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="cannot join"):
        top.merge(TopScores(2, 2, 2))
    with pytest.raises(ValueError, match="as alive"):
        top.merge(TopScores(2, 2, 1, torch.tensor([True, False])))
    with pytest.raises(ValueError, match="2 rows and 1 columns"):
        top.units_of_concept.add(torch.arange(2), torch.arange(1), torch.zeros(1, 2))
