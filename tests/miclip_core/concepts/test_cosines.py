"""Top lists by cosine, against whole numbers of any size in Python and angles that can be read."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from miclip_core.concepts import cosines
from miclip_core.concepts.cosines import score_blocks
from miclip_core.concepts.memory import scoring_bytes
from miclip_core.concepts.top import NONE, TopScores
from schemas.errors import BadSpec
from tests.miclip_core.concepts.test_top import assert_is_best, best, listed


def whole(vectors: Tensor) -> list[list[int]]:
    """Unit vectors as multiples of 2^-26."""
    x = vectors.double().numpy()
    with np.errstate(invalid="ignore"):
        unit = x / np.sqrt((x * x).sum(1, keepdims=True))
    return [[round(v * 2**26) if np.isfinite(v) else 0 for v in row] for row in unit.tolist()]


def table(units: Tensor, concepts: Tensor) -> np.ndarray:
    """Cosines [U,M] by loops over Python's own numbers, which have no last bit."""
    rows = [[sum(map(int.__mul__, u, c)) for c in whole(concepts)] for u in whole(units)]
    scores = np.float32([[float(Fraction(s, 2**52)) for s in row] for row in rows]).clip(-1, 1)
    none = [~(x.norm(dim=1).isfinite() & (x.norm(dim=1) > 0)).numpy() for x in (units, concepts)]
    scores[none[0]], scores[:, none[1]] = np.nan, np.nan
    return scores


def draw(n: int, width: int = 48, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def with_ties(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Units of which many are the same at scattered places, some are nearly so, and concepts near them."""
    units, concepts = draw(60, seed=seed), draw(25, seed=seed + 100)
    units[5::3] = units[2]
    units[7::9] = units[2] * (1 + 1e-6 * torch.rand(units[7::9].shape, generator=torch.Generator().manual_seed(seed)))
    concepts[::4] = units[2] + 0.3 * concepts[::4]
    concepts[4:21:8] = concepts[0]
    return units, concepts


def assert_same(a: TopScores, b: TopScores) -> None:
    for x, y in ((a.concepts_of_unit, b.concepts_of_unit), (a.units_of_concept, b.units_of_concept)):
        assert torch.equal(x.ids_NK, y.ids_NK) and torch.equal(x.scores_NK, y.scores_NK)


def test_angles_that_can_be_read():
    units = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-5.0, 0.0]])
    top = score_blocks(units, torch.tensor([[1.0, 0.0], [0.0, 0.1]]), tau=2)
    assert top.concepts_of_unit.ids_NK.tolist() == [[1, 0], [1, 0], [1, 0]]
    assert torch.equal(top.concepts_of_unit.scores_NK, torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.0, -1.0]]))
    assert top.units_of_concept.ids_NK.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("tau", [1, 5, 20])
def test_lists_are_those_of_the_whole_table_of_exact_cosines(tau: int):
    for units, concepts in ((draw(60), draw(25, seed=1)), with_ties()):
        assert_is_best(score_blocks(units, concepts, tau, unit_block=16, concept_block=8), table(units, concepts), tau)


def test_cosines_agree_with_float64_to_the_last_bits_of_float32():
    units, concepts = draw(50, 512), draw(40, 512, 1)
    top = score_blocks(units, concepts, 40).concepts_of_unit
    usual = torch.nn.functional.cosine_similarity(units[:, None].double(), concepts.double(), dim=2)
    assert torch.allclose(top.scores_NK.double(), usual.gather(1, top.ids_NK), rtol=0, atol=6e-8)


def test_of_units_with_one_vector_the_first_ones_are_found():
    units = draw(300, 512)
    same = torch.tensor([3, 40, 41, 130, 131, 250, 299])
    units[same] = units[3].clone()
    top = score_blocks(units, units[same[:2]] + 0.1 * draw(2, 512, 1), 5, concept_block=1, unit_block=37)
    assert top.units_of_concept.ids_NK.tolist() == [same[:5].tolist()] * 2


def test_neither_blocks_nor_shards_nor_threads_change_a_bit():
    units, concepts = with_ties(3)
    alive = torch.rand(60, generator=torch.Generator().manual_seed(5)) < 0.8
    whole_run = score_blocks(units, concepts, 4, alive)
    threads = torch.get_num_threads()
    try:
        for n, unit_block, concept_block in ((1, 5, 25), (2, 17, 7), (1, 60, 2)):
            torch.set_num_threads(n)
            blocks = {"unit_block": unit_block, "concept_block": concept_block}
            assert_same(score_blocks(units, concepts, 4, alive, **blocks), whole_run)
            merged = TopScores(60, 25, 4, alive)
            for first, stop in ((31, 60), (0, 1), (1, 31)):
                merged.merge(
                    score_blocks(units[first:stop], concepts, 4, alive, first_unit=first, total_units=60, **blocks)
                )
            assert_same(merged, whole_run)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("margin", [0.0, 2.0])
def test_candidates_of_fast_products_give_what_exact_products_of_everything_give(margin: float, monkeypatch):
    """A bound that no product keeps, or that no row clears, has everything done again."""
    units, concepts = with_ties(1)
    quick = [score_blocks(u, c, 3, unit_block=13) for u, c in ((units, concepts), (draw(90, 64), draw(70, 64, 9)))]
    monkeypatch.setattr(cosines, "_margin", lambda width: margin)
    for fast, (u, c) in zip(quick, ((units, concepts), (draw(90, 64), draw(70, 64, 9)))):
        assert_same(fast, score_blocks(u, c, 3, unit_block=13))


@pytest.mark.parametrize("width", [3, 512, 4096])
def test_a_float32_product_keeps_its_bound(width: int):
    for seed, ones in ((0, False), (1, True)):
        x = (torch.ones(200, width) + 1e-3 * draw(200, width, seed)) if ones else draw(200, width, seed)
        vectors = cosines._Vectors(x)
        rows = vectors.scored
        exact = vectors.exact(rows) @ vectors.exact(rows).T * 2.0**-52
        fast = vectors.fast(rows) @ vectors.fast(rows).T
        assert (fast.double() - exact).abs().max() < cosines._margin(width)


def test_what_has_no_direction_is_in_no_list_and_dead_units_are_only_described():
    units, concepts = draw(12), draw(9, seed=1)
    units[2], units[7, 3], units[9, 0], concepts[4] = 0, torch.nan, torch.inf, 0
    alive = torch.ones(12, dtype=torch.bool)
    alive[5] = False
    scores = table(units, concepts)
    top = score_blocks(units, concepts, 8, alive, unit_block=4, concept_block=4)
    assert listed(top.concepts_of_unit) == best(scores, 8)
    scores[5] = np.nan
    assert listed(top.units_of_concept) == best(scores.T, 8)
    assert (top.concepts_of_unit.ids_NK[[2, 7, 9]] == NONE).all() and (top.units_of_concept.ids_NK[4] == NONE).all()
    assert not torch.isin(top.units_of_concept.ids_NK, torch.tensor([2, 5, 7, 9])).any()


def test_a_shard_of_no_units_and_one_of_units_without_direction_find_nothing():
    for units in (draw(0), torch.zeros(3, 48)):
        top = score_blocks(units, draw(4, seed=1), 2, first_unit=1, total_units=5)
        assert (top.concepts_of_unit.ids_NK == NONE).all() and (top.units_of_concept.ids_NK == NONE).all()


def test_vectors_that_are_being_trained_leave_no_graph():
    top = score_blocks(draw(9).requires_grad_(), draw(4, seed=1).requires_grad_(), 2)
    assert not top.concepts_of_unit.scores_NK.requires_grad


def test_few_concepts_make_short_lists():
    top = score_blocks(draw(9), draw(2, seed=1), 5).concepts_of_unit
    assert (top.ids_NK[:, :2] >= 0).all() and (top.ids_NK[:, 2:] == NONE).all()


def test_length_does_not_count_and_the_opposite_unit_has_the_opposite_cosine():
    units, concepts = draw(30), draw(20, seed=1)
    lengths = 2.0 ** torch.randint(-20, 20, (30, 1), generator=torch.Generator().manual_seed(0))
    plain = score_blocks(units, concepts, 20)
    assert_same(score_blocks(units * lengths, concepts, 20), plain)
    assert_same(score_blocks(units.double(), concepts.double(), 20), plain)
    opposite = score_blocks(-units, concepts, 20).concepts_of_unit
    assert torch.equal(opposite.scores_NK.flip(1), -plain.concepts_of_unit.scores_NK)


def test_turning_both_spaces_changes_no_list():
    units, concepts = draw(30), draw(20, seed=1)
    turn = torch.linalg.qr(draw(48, 48, 7).double()).Q
    plain, turned = (
        score_blocks(u, c, 5) for u, c in ((units, concepts), (units.double() @ turn, concepts @ turn.float()))
    )
    assert torch.equal(plain.concepts_of_unit.ids_NK, turned.concepts_of_unit.ids_NK)
    assert torch.equal(plain.units_of_concept.ids_NK, turned.units_of_concept.ids_NK)


def test_requests_that_cannot_be_met_are_refused():
    units, concepts = draw(6), draw(5, seed=1)
    units[0] = 0
    dead = torch.tensor([True, True, True, False, True, True])
    with pytest.raises(BadSpec, match="units have 48 dimensions and concepts 20"):
        score_blocks(units, concepts[:, :20], 1)
    with pytest.raises(BadSpec, match="tau is 5, but of 6 units only 4 are alive and have a direction"):
        score_blocks(units, concepts, 5, dead)
    with pytest.raises(ValueError, match="6 units from 3 on are not among 8"):
        score_blocks(units, concepts, 1, first_unit=3, total_units=8)
    shard = score_blocks(units[:2], concepts, 5, first_unit=2, total_units=9)  # of a shard nobody can know
    assert (shard.units_of_concept.ids_NK == torch.tensor([3] + [NONE] * 4)).all()


def test_stated_memory_knows_nothing_of_units_times_concepts():
    """A whole table of 100,000 x 20,000 would be 7.5 GiB; tests/benchmarks measures that this bound holds."""
    assert scoring_bytes(100_000, 20_000, 512, 5) < 0.3 * 2**30
    assert (
        scoring_bytes(200_000, 20_000, 512, 5) - scoring_bytes(100_000, 20_000, 512, 5) < 100_000 * 1000
    )  # bytes for each further unit
