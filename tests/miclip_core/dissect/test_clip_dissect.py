"""Similarity functions of CLIP-Dissect against slow references, over shards, and on inputs whose answer is plain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from miclip_core.dissect import rank_reorder as rank_reorder_module
from miclip_core.dissect import wpmi as wpmi_module
from miclip_core.dissect.clip_dissect import SIMILARITIES, clip_dissect
from miclip_core.dissect.cosines import Cosines, CubedCosines, Means
from miclip_core.dissect.rank_reorder import RankReorder, rank_reorder, shuffles
from miclip_core.dissect.top_images import TopImages
from miclip_core.dissect.wpmi import SOFT_WPMI, WPMI, Marginal, Pmi, log_likelihoods, pmi_scores
from schemas.concept_specs import Similarity
from schemas.errors import BadAlignment, NonFiniteActivation, TooFewImages
from tests.miclip_core.dissect import slow_references

N, U, M, E = 240, 9, 7, 12
DEAD, CONSTANT, TIED = 0, 1, 2


def make_inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, image embeddings and concepts that mostly point one way; some units of each odd kind."""
    draw = torch.Generator().manual_seed(seed)
    x_NE, concepts_ME = torch.randn(N, E, generator=draw), torch.randn(M, E, generator=draw)
    x_NE[:, 0] += 4
    concepts_ME[:, 0] += 4
    t_NU = torch.randn(N, U, generator=draw) + x_NE @ torch.randn(E, U, generator=draw)
    t_NU[:, DEAD], t_NU[:, CONSTANT] = 0, 1.7
    t_NU[:, TIED] = t_NU[:, TIED].relu().round()
    return t_NU, x_NE, concepts_ME


def slow(similarity: Similarity, t_NU: Tensor, x_NE: Tensor, concepts_ME: Tensor) -> np.ndarray:
    t, p = t_NU.double().numpy(), slow_references.cosines(x_NE.numpy(), concepts_ME.numpy())
    if similarity == "rank_reorder":
        return slow_references.rank_reorder(t, p, shuffles(math.floor(0.05 * len(t))).numpy())
    return getattr(slow_references, similarity)(t, p)


def assert_close(found: Tensor, expected: np.ndarray | Tensor) -> None:
    np.testing.assert_allclose(found.numpy(), np.asarray(expected), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- references


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_scores_equal_the_formulas_done_slowly(similarity: Similarity) -> None:
    inputs = make_inputs()
    found = clip_dissect(similarity, *inputs)
    assert found.dtype == torch.float32 and found.shape == (U, M)
    assert_close(found, slow(similarity, *inputs))
    assert found[DEAD].isnan().all() and not found[3:].isnan().any()
    assert found[CONSTANT].isnan().all() == (similarity != "cos")  # its direction is that of all ones, which is one


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_half_precision_is_read_like_the_numbers_that_it_holds(similarity: Similarity) -> None:
    t_NU, x_NE, concepts_ME = make_inputs(1)
    inputs = t_NU.half(), x_NE.half(), concepts_ME.half()
    assert_close(clip_dissect(similarity, *inputs), slow(similarity, *(part.float() for part in inputs)))


def test_cubes_that_are_shorter_than_their_floor_are_not_brought_to_length_one() -> None:
    t_NU, x_NE, concepts_ME = make_inputs()
    inputs = 0.01 * t_NU, x_NE * 0.01 + x_NE.mean(0), concepts_ME
    found = clip_dissect("cos_cubed", *inputs)
    assert found[3:].abs().max() < 0.1 * clip_dissect("cos_cubed", t_NU, x_NE, concepts_ME)[3:].abs().max()
    np.testing.assert_allclose(found.numpy(), slow("cos_cubed", *inputs), rtol=1e-5, atol=0)


def test_rank_reorder_takes_the_permutations_it_is_given() -> None:
    t_NU, x_NE, concepts_ME = make_inputs(2)
    given = torch.stack([torch.arange(12).flip(0), torch.arange(12).roll(5)])
    expected = slow_references.rank_reorder(
        t_NU.double().numpy(), slow_references.cosines(x_NE.numpy(), concepts_ME.numpy()), given.numpy()
    )
    assert_close(clip_dissect("rank_reorder", t_NU, x_NE, concepts_ME, given), expected)
    assert not torch.allclose(shuffles(12, seed=0), shuffles(12, seed=1))
    assert all(sorted(some) == list(range(12)) for some in shuffles(12).tolist())


def test_no_cosine_above_zero_means_no_rank_reorder() -> None:
    t_NU, x_NE, concepts_ME = make_inputs()
    concepts_ME[4] = -concepts_ME[3]
    scores_UM = clip_dissect("rank_reorder", t_NU, x_NE, concepts_ME)
    np.testing.assert_array_equal(scores_UM[3:, 4].isnan().numpy(), ~scores_UM[3:, 3].isnan().numpy())
    assert_close(scores_UM, slow("rank_reorder", t_NU, x_NE, concepts_ME))


# ---------------------------------------------------------------- shards


def image_shards(seed: int, shards: int = 5) -> Sequence[Tensor]:
    """Places of images, dealt out at random into shards of random size."""
    draw = torch.Generator().manual_seed(seed)
    cuts = torch.randperm(N - 1, generator=draw)[: shards - 1].sort().values + 1
    return torch.randperm(N, generator=draw).tensor_split(cuts)


def merged_top(k: int, t_NU: Tensor, seed: int) -> TopImages:
    """Half of the shards added to one, the others merged into it in a row."""
    first, *others = (TopImages(k) for _ in range(3))
    for i, images in enumerate(image_shards(seed)):
        (first if i < 3 else others[i - 3]).add(images, t_NU[images])
    for other in others:
        first.merge(other)
    return first


@pytest.mark.parametrize("k", [3, 100, 200])
def test_top_images_of_shards_are_those_of_the_whole_ties_included(k: int) -> None:
    t_NU, _, _ = make_inputs()
    for seed in range(3):
        found = merged_top(k, t_NU, seed)
        assert found.seen == N
        for u in range(U):
            expected = slow_references.top(t_NU[:, u].numpy(), k)
            assert found.images[u].tolist() == expected
            torch.testing.assert_close(found.values[u], t_NU[expected, u], rtol=0, atol=0)
        torch.testing.assert_close(found.first(2).images, found.images[:, :2])


def test_merging_changes_only_what_is_merged_into() -> None:
    t_NU, _, _ = make_inputs()
    one, other = TopImages(5), TopImages(5)
    other.add(torch.arange(100), t_NU[:100])
    before = other.images.clone()
    one.merge(other)
    one.add(torch.arange(100, N), t_NU[100:])
    assert torch.equal(other.images, before) and not torch.equal(one.images, before)


def test_cosines_of_image_shards_are_those_of_the_whole() -> None:
    t_NU, x_NE, concepts_ME = make_inputs()
    whole, parts = clip_dissect("cos", t_NU, x_NE, concepts_ME), [Cosines() for _ in range(5)]
    for part, images in zip(parts, image_shards(0)):
        part.add(t_NU[images], x_NE[images])
    for part in parts[1:]:
        parts[0].merge(part)
    assert_close(parts[0].scores(concepts_ME), whole)


def test_cubed_cosines_in_portions_are_those_of_the_whole() -> None:
    t_NU, x_NE, concepts_ME = make_inputs()
    means = Means()
    for images in image_shards(0):
        means.add(t_NU[images], x_NE[images])
    cubed = CubedCosines(means, concepts_ME)
    for images in image_shards(1):  # the second pass may be cut otherwise
        cubed.add(t_NU[images], x_NE[images])
    assert_close(cubed.scores(), clip_dissect("cos_cubed", t_NU, x_NE, concepts_ME))


UNIT_SHARDS = [[4, 0, 7], [1], [8, 6, 5, 2, 3]]


def test_rank_reorder_of_image_and_unit_shards_is_that_of_the_whole() -> None:
    t_NU, x_NE, concepts_ME = make_inputs()
    found = torch.empty(U, M)
    for units in UNIT_SHARDS:
        top = merged_top(20, t_NU[:, units], seed=3)  # more are kept than are ranked
        x_RE = x_NE[top.first(12).used()]
        found[units] = rank_reorder(RankReorder(), top, x_RE, concepts_ME, shuffles(12))
    assert_close(found, clip_dissect("rank_reorder", t_NU, x_NE, concepts_ME))


@pytest.mark.parametrize("similarity, pmi", [("wpmi", WPMI), ("soft_wpmi", SOFT_WPMI)])
def test_pmi_of_image_and_unit_shards_is_that_of_the_whole(similarity: Similarity, pmi: Pmi) -> None:
    t_NU, x_NE, concepts_ME = make_inputs()
    tops = [merged_top(120, t_NU[:, units], seed=4) for units in UNIT_SHARDS]
    likelihoods = [log_likelihoods(pmi, top, x_NE[top.first(pmi.top_k).used()], concepts_ME) for top in tops]
    marginals = [Marginal() for _ in UNIT_SHARDS]
    for marginal, likelihood_UM in zip(marginals, likelihoods):
        marginal.add(likelihood_UM)
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        joined = Marginal()
        for i in order:
            joined.merge(marginals[i])
        found = torch.empty(U, M)
        for units, likelihood_UM in zip(UNIT_SHARDS, likelihoods):
            found[units] = pmi_scores(pmi, likelihood_UM, joined)
        assert_close(found, clip_dissect(similarity, t_NU, x_NE, concepts_ME))


def test_the_merged_marginal_is_logsumexp_at_once_even_far_below_the_range_of_floats() -> None:
    l_UM = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 300 - 5000
    joined = Marginal()
    for part in l_UM.split([1, 30, 19]):
        other = Marginal()
        other.add(part)
        joined.merge(other)
    torch.testing.assert_close(joined.log_mean(), l_UM.logsumexp(0) - math.log(50), rtol=1e-13, atol=0)


@pytest.mark.parametrize("similarity", ["rank_reorder", "wpmi", "soft_wpmi"])
def test_blocks_of_concepts_and_units_change_nothing(similarity: Similarity, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs()
    whole = clip_dissect(similarity, *inputs)
    monkeypatch.setattr(wpmi_module, "BLOCK_PROBABILITIES", 3 * N)
    monkeypatch.setattr(wpmi_module, "TILE", {"cpu": (4, 2)})
    monkeypatch.setattr(rank_reorder_module, "BLOCK_COSINES", 5 * N)
    monkeypatch.setattr(rank_reorder_module, "BLOCK_KEYS", 2 * 12)
    assert_close(clip_dissect(similarity, *inputs), whole)


# ---------------------------------------------------------------- what must hold


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_permuted_units_concepts_and_images_permute_scores(similarity: Similarity) -> None:
    t_NU, x_NE, concepts_ME = make_inputs()
    t_NU[:, TIED] += torch.arange(N) * 1e-3  # ties go by the order of the images
    draw = torch.Generator().manual_seed(1)
    images, units, concepts = (torch.randperm(n, generator=draw) for n in (N, U, M))
    found = clip_dissect(similarity, t_NU[images][:, units], x_NE[images], concepts_ME[concepts])
    assert_close(found, clip_dissect(similarity, t_NU, x_NE, concepts_ME)[units][:, concepts])


@pytest.mark.parametrize("similarity", ["wpmi", "soft_wpmi"])
def test_pmi_knows_only_the_order_of_activations(similarity: Similarity) -> None:
    t_NU, x_NE, concepts_ME = make_inputs()
    found = clip_dissect(similarity, (t_NU.double() * 0.4).exp().float(), x_NE, concepts_ME)
    assert_close(found, clip_dissect(similarity, t_NU, x_NE, concepts_ME))


def test_soft_wpmi_with_all_q_of_one_is_wpmi() -> None:
    t_NU, x_NE, concepts_ME = make_inputs()
    t_NU = t_NU[:, 3:]
    pmi = Pmi(top_k=28, sharpness=2.0, weight=1.0)
    top = TopImages(28)
    top.add(torch.arange(N), t_NU)
    l_UM = log_likelihoods(pmi, top, x_NE[top.used()], concepts_ME)
    p_NM = (2 * torch.from_numpy(slow_references.cosines(x_NE.numpy(), concepts_ME.numpy()))).softmax(1)
    torch.testing.assert_close(l_UM, p_NM[top.images].log().sum(1), rtol=1e-5, atol=1e-4)


def test_a_unit_that_is_dead_leaves_the_others_scores_alone() -> None:
    t_NU, x_NE, concepts_ME = make_inputs()
    for similarity in SIMILARITIES:
        alone = clip_dissect(similarity, t_NU[:, 3:], x_NE, concepts_ME)
        assert_close(clip_dissect(similarity, t_NU[:, [*range(3, U), DEAD]], x_NE, concepts_ME)[:-1], alone)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_units_that_follow_a_concept_are_described_by_it(similarity: Similarity) -> None:
    draw = torch.Generator().manual_seed(0)
    concepts_ME = torch.nn.functional.normalize(torch.randn(20, 64, generator=draw), dim=1)
    labels = torch.randint(20, (4000,), generator=draw)
    strength = torch.rand(4000, 1, generator=draw) + 0.5
    x_NE = torch.nn.functional.normalize(
        strength * concepts_ME[labels] + 0.05 * torch.randn(4000, 64, generator=draw), dim=1
    )
    t_NU = (x_NE @ concepts_ME.T - 0.3).relu()
    scores_UM = clip_dissect(similarity, t_NU, x_NE, concepts_ME).nan_to_num(nan=-math.inf)
    assert scores_UM.argmax(1).tolist() == list(range(20))


@pytest.mark.parametrize("slopes", [[1e7] * 100, [500.0] * 150, [1e20] * 9, [0.5] * 4000])
def test_products_never_leave_the_range_of_their_numbers(slopes: list[float]) -> None:
    p_RM = torch.ones(2, 3)
    places_KU = torch.zeros(len(slopes), 4, dtype=torch.int64)
    found = wpmi_module._log_products(p_RM, places_KU, slopes)
    torch.testing.assert_close(
        found, torch.full((4, 3), sum(map(math.log1p, slopes)), dtype=torch.float64), rtol=1e-6, atol=0
    )


# ---------------------------------------------------------------- bad input


def test_activations_that_are_not_finite_are_refused_by_unit_and_image() -> None:
    for similarity in SIMILARITIES:
        t_NU, x_NE, concepts_ME = make_inputs()
        t_NU[17, 5] = math.nan
        with pytest.raises(NonFiniteActivation, match=r"units \[5\] at rows \[17\]"):
            clip_dissect(similarity, t_NU, x_NE, concepts_ME)
        t_NU[17, 5] = -math.inf
        with pytest.raises(NonFiniteActivation):
            clip_dissect(similarity, t_NU, x_NE, concepts_ME)


def test_embeddings_without_a_direction_are_refused() -> None:
    for similarity in SIMILARITIES:
        t_NU, x_NE, concepts_ME = make_inputs()
        with pytest.raises(BadAlignment, match="concept embeddings"):
            clip_dissect(similarity, t_NU, x_NE, torch.cat((concepts_ME, torch.zeros(1, E))))
        with pytest.raises(BadAlignment, match="image embeddings"):
            clip_dissect(similarity, t_NU, x_NE * 0, concepts_ME)


def test_embeddings_of_another_clip_or_of_other_images_are_refused() -> None:
    for similarity in SIMILARITIES:
        t_NU, x_NE, concepts_ME = make_inputs()
        with pytest.raises(BadAlignment, match=r"concept embeddings \[N, 12\], got \(7, 11\)"):
            clip_dissect(similarity, t_NU, x_NE, concepts_ME[:, :-1])
        with pytest.raises(BadAlignment, match="each of 240 images"):
            clip_dissect(similarity, t_NU, x_NE[:-1], concepts_ME)
    top = TopImages(28)
    top.add(torch.arange(N), t_NU)
    for call in (lambda x_RE: log_likelihoods(WPMI, top, x_RE, concepts_ME),
                 lambda x_RE: rank_reorder(RankReorder(), top, x_RE, concepts_ME, shuffles(12))):  # fmt: skip
        with pytest.raises(BadAlignment, match="one CLIP embedding for each of"):
            call(x_NE)


def test_too_few_images_are_refused_with_the_number_needed() -> None:
    t_NU, x_NE, concepts_ME = make_inputs()
    needed: dict[Similarity, int] = {"wpmi": 28, "soft_wpmi": 100, "rank_reorder": 40}
    for similarity, n in needed.items():
        assert clip_dissect(similarity, t_NU[:n], x_NE[:n], concepts_ME).shape == (U, M)
        with pytest.raises(TooFewImages, match=f"{n - 1}"):
            clip_dissect(similarity, t_NU[: n - 1], x_NE[: n - 1], concepts_ME)
