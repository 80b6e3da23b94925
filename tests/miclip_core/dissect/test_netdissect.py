"""Overlaps against loops over units, concepts and pixels; planted units of the demo world come first."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from miclip_core.dissect.masks import Masks, TruthSegmenter
from miclip_core.dissect.netdissect import DETECTOR, Overlaps, codes_above, maps_above
from miclip_core.dissect.thresholds import Thresholds, find_thresholds
from miclip_core.sae.codes import Codes
from miclip_core.world.scene import World


def made_up(seed: int = 0, images: int = 7, units: int = 6, concepts: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Maps [B,U,4,4] (the last unit is dead), thresholds, and masks [B,M,9,9]; the last concept is nowhere."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(images, units, 4, 4, generator=generator)
    maps[:, -1] = 0
    masks = interpolate(torch.rand(images, concepts, 3, 3, generator=generator), (9, 9)) > 0.6
    masks[:, -1] = False
    shown = torch.rand(images, concepts, generator=generator) < 0.6
    value = torch.linspace(0.2, 1.4, units)
    value[-1] = 0
    return maps, value, masks & shown[:, :, None, None]


def thresholds(value: Tensor, maps: Tensor) -> Thresholds:
    above = (maps > value[:, None, None]).transpose(0, 1).flatten(1).sum(1)
    return Thresholds(value, above, maps[:, 0].numel())


def slow(maps: Tensor, value: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Intersections and unions as they are defined: pixels of one unit, one concept and one image after another."""
    inter, union = torch.zeros(2, maps.shape[1], masks.shape[1], dtype=torch.int64)
    for u in range(maps.shape[1]):
        on = interpolate(maps[:, u : u + 1], masks.shape[2:], mode="bilinear", align_corners=False)[:, 0] > value[u]
        for c in range(masks.shape[1]):
            for b in range(len(maps)):
                inter[u, c] += (on[b] & masks[b, c]).sum()
                union[u, c] += (on[b] | masks[b, c]).sum()
    return inter, union


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_a_loop_over_images(seed: int) -> None:
    maps, value, masks = made_up(seed)
    overlaps = Overlaps(6, 4)
    found = thresholds(value, maps)
    overlaps.add(maps_above(maps, found), Masks.from_dense(masks))
    inter, union = slow(maps, value, masks)
    assert torch.equal(overlaps.shared_UM, inter) and torch.equal(overlaps.union_UM, union)
    iou = overlaps.iou(found.above > 0)
    assert (
        torch.allclose(iou[:5, :3], (inter / union)[:5, :3].double())
        and ((iou[:5, :3] >= 0) & (iou[:5, :3] <= 1)).all()
    )
    assert iou[5].isnan().all() and iou[:, 3].isnan().all()


@pytest.mark.parametrize("size", [(9, 9), (3, 11), (2, 3), (64, 40)])
def test_it_does_not_matter_how_much_is_compared_at_once(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks larger and smaller than the maps, a few of them and a few pixels at a time."""
    monkeypatch.setattr("miclip_core.dissect.netdissect._MASKS", 3)
    monkeypatch.setattr("miclip_core.dissect.netdissect._PIXELS", 20)
    maps, value, _ = made_up(4)
    masks = torch.rand(7, 4, *size, generator=torch.Generator().manual_seed(1)) < 0.4
    overlaps = Overlaps(6, 4)
    overlaps.add(maps_above(maps, thresholds(value, maps)), Masks.from_dense(masks))
    inter, union = slow(maps, value, masks)
    assert torch.equal(overlaps.shared_UM, inter) and torch.equal(overlaps.union_UM, union)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_images_in_any_portions_count_as_one_pass(shard_of: list[int]) -> None:
    maps, value, masks = made_up(9)
    found = thresholds(value, maps)
    whole, cut = Overlaps(6, 4), Overlaps(6, 4)
    whole.add(maps_above(maps, found), Masks.from_dense(masks))
    for shard in (2, 0, 1):
        rows = torch.tensor(shard_of) == shard
        cut.add(maps_above(maps[rows], found), Masks.from_dense(masks[rows]))
    assert torch.equal(cut.shared_UM, whole.shared_UM) and torch.equal(cut.union_UM, whole.union_UM)


def test_blocks_of_units_are_the_rows_of_the_whole() -> None:
    maps, value, masks = made_up(3)
    found = thresholds(value, maps)
    whole, block = Overlaps(6, 4), Overlaps(3, 4)
    whole.add(maps_above(maps, found), Masks.from_dense(masks))
    block.add(maps_above(maps[:, 2:5], found[2:5]), Masks.from_dense(masks))
    assert torch.equal(block.shared_UM, whole.shared_UM[2:5]) and torch.equal(block.unit_U, whole.unit_U[2:5])


def test_a_unit_that_is_the_mask_has_iou_one_and_its_complement_none() -> None:
    masks = Masks.from_dense(torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.3)
    same = torch.zeros(6, 3, 8, 8)
    same[masks.image, masks.concept] = masks.mask.float()
    maps = torch.cat((same, 1 - same), 1)
    overlaps = Overlaps(6, 3)
    overlaps.add(maps_above(maps, Thresholds(torch.full((6,), 0.5), torch.ones(6), 1)), masks)
    iou = overlaps.iou()
    assert iou.diagonal().tolist() == [1, 1, 1] and iou[3:].diagonal().tolist() == [0, 0, 0]


def test_a_map_of_equal_values_at_the_threshold_is_on_nowhere() -> None:
    """Weights of an interpolation need not sum to one exactly: 0.1 all over must not become more than 0.1."""
    maps = torch.full((1, 1, 5, 5), 0.1)
    maps[0, 0, 0, 0] = 3.0
    overlaps = Overlaps(1, 1)
    overlaps.add(
        maps_above(maps, Thresholds(torch.tensor([0.1]), torch.ones(1), 25)),
        Masks.from_dense(torch.ones(1, 1, 37, 37) > 0),
    )
    # The corner's hat: 5/37 of a cell per pixel, on up to less than one cell from the corner's centre, in both directions.
    reach = sum((x + 0.5) * 5 / 37 - 0.5 < 1 for x in range(37))
    assert overlaps.shared_UM.item() == reach**2


def test_codes_give_the_same_maps_as_dense_activations() -> None:
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn(4, 30, 3, 5, generator=generator) * (torch.rand(4, 30, 3, 5, generator=generator) < 0.1)
    maps[2] = 0
    value = torch.rand(30, generator=generator) * 0.5
    value[:10] = 0
    found = thresholds(value, maps)
    codes = Codes.from_dense(maps.flatten(2).transpose(1, 2).reshape(-1, 30))
    one, other = maps_above(maps, found), codes_above(codes, (3, 5), found)
    assert len(one.unit) > 20 and torch.equal(one.image, other.image) and torch.equal(one.unit, other.unit)
    assert torch.equal(one.excess, other.excess)
    nothing = codes_above(Codes.from_dense(torch.zeros(15, 30)), (3, 5), found)
    assert nothing.excess.shape == (0, 3, 5)


def test_codes_with_negative_thresholds_give_the_maps_of_dense_activations() -> None:
    """A latent that is negative at nearly all positions is on where it is 0; another image lies below as a whole."""
    generator = torch.Generator().manual_seed(6)
    maps = -torch.rand(4, 8, 3, 5, generator=generator)
    maps[0, :, 1] = 0
    maps[1, 3, 0, 0] = 0.7
    maps[3] = -2
    found = thresholds(torch.linspace(-1.5, 0.2, 8), maps)
    codes = Codes.from_dense(maps.flatten(2).transpose(1, 2).reshape(-1, 8))
    one, other = maps_above(maps, found), codes_above(codes, (3, 5), found)
    assert 0 < len(one.unit) < 24 and not (one.image == 3).any()
    assert torch.equal(one.image, other.image) and torch.equal(one.unit, other.unit)
    assert torch.equal(one.excess, other.excess)


def test_a_patch_unit_for_red_finds_red_among_all_concepts_of_the_world() -> None:
    """Units that are the share of each patch that a value covers; thresholds from the data, found by IoU alone."""
    segmenter = TruthSegmenter(World(seed=3), ("shape", "colour", "size"))
    masks = segmenter.segment(torch.zeros(300, 3, 64, 64, dtype=torch.uint8), torch.arange(300))
    covered = torch.zeros(300, len(segmenter.concepts), 64, 64)
    covered[masks.image, masks.concept] = masks.mask.float()
    maps = covered.unflatten(3, (8, 8)).unflatten(2, (8, 8)).mean((3, 5))
    found = find_thresholds(lambda: [maps.flatten(2).transpose(1, 2).flatten(0, 1)], maps.shape[1], 0.02)
    overlaps = Overlaps(maps.shape[1], masks.n_concepts)
    overlaps.add(maps_above(maps, found), masks)
    iou = overlaps.iou(found.above > 0)
    assert (iou.argmax(1) == torch.arange(len(iou)))[: len(iou) - 2].all()  # sizes cover more than 2 % of all patches
    assert (iou.diagonal()[:-2] > 5 * DETECTOR).all()


def test_what_does_not_fit_together_is_refused() -> None:
    maps, value, masks = made_up()
    found = thresholds(value, maps)
    with pytest.raises(ValueError, match="6 units and thresholds of 3"):
        maps_above(maps, found[:3])
    with pytest.raises(ValueError, match="expected \\(5, 4\\)"):
        Overlaps(5, 4).add(maps_above(maps, found), Masks.from_dense(masks))
    codes = Codes.from_dense(torch.ones(16, 6))
    with pytest.raises(ValueError, match="no whole number"):
        codes_above(codes, (3, 3), found)
