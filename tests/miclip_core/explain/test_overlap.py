"""Overlaps counted pixel by pixel, and scikit-learn's Jaccard score, precision and recall."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score, precision_score, recall_score

from miclip_core.explain.overlap import Overlap, join_masks, measure_overlap

RNG = np.random.default_rng(0)


def numbers(found: Overlap) -> tuple[float, ...]:
    return tuple(float(value) for value in found)


def upright(share: float, side: int = 224) -> torch.Tensor:
    """The left part of an image."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[:, : round(share * side)] = True
    return mask


def test_half_against_three_quarters_is_two_thirds() -> None:
    active = torch.tensor([[3.0, 0.1, 0.0, -1.0]])
    assert numbers(measure_overlap(active, upright(0.75))) == pytest.approx((2 / 3, 2 / 3, 1.0), abs=1e-15)


def test_equal_masks_are_one_disjoint_ones_zero_and_empty_ones_no_division() -> None:
    half, other, empty = upright(0.5), ~upright(0.5), torch.zeros(224, 224, dtype=torch.bool)
    assert numbers(measure_overlap(half, half)) == (1, 1, 1)
    assert numbers(measure_overlap(half, other)) == (0, 0, 0)
    for one, two in ((half, empty), (empty, half), (empty, empty)):
        assert numbers(measure_overlap(one, two)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("grid", "size"), [((7, 7), (224, 224)), ((8, 8), (64, 64)), ((5, 3), (37, 90)), ((16, 16), (336, 300))]
)
def test_it_is_what_scikit_learn_says_of_the_pixels(grid: tuple[int, int], size: tuple[int, int]) -> None:
    map_IJ, mask_IJ = RNG.normal(size=grid), RNG.random(size) < 0.4
    at = np.arange(224)
    active = (map_IJ > 0)[np.ix_(at * grid[0] // 224, at * grid[1] // 224)].ravel()
    found = mask_IJ[np.ix_(at * size[0] // 224, at * size[1] // 224)].ravel()
    expected = [score(active, found) for score in (jaccard_score, precision_score, recall_score)]
    assert numbers(measure_overlap(torch.from_numpy(map_IJ), torch.from_numpy(mask_IJ))) == pytest.approx(expected)


def test_it_is_symmetric_and_precision_and_recall_swap_with_the_masks() -> None:
    one, two = (torch.from_numpy(RNG.random((224, 224)) < share) for share in (0.3, 0.6))
    there, back = measure_overlap(one, two), measure_overlap(two, one)
    assert there.iou == back.iou and there.precision == back.recall and there.recall == back.precision
    assert there.precision != there.recall


def test_an_activation_far_below_the_largest_still_counts() -> None:
    """Brought to 8 bits before the threshold it would vanish."""
    active = torch.tensor([[1000.0, 1e-4], [1e-30, 0.0]])
    mask = torch.ones(8, 8, dtype=torch.bool)
    assert float(measure_overlap(active, mask).iou) == 0.75


def test_many_images_are_measured_as_one_by_one() -> None:
    maps, masks = torch.from_numpy(RNG.normal(size=(3, 4, 4))), torch.from_numpy(RNG.random((3, 32, 32)) < 0.5)
    together = measure_overlap(maps, masks)
    alone = [numbers(measure_overlap(maps[b], masks[b])) for b in range(3)]
    assert torch.stack(together, 1).tolist() == [list(one) for one in alone]


def test_of_several_masks_the_first_or_all_together_count() -> None:
    masks = torch.stack([upright(0.25, 8), ~upright(0.75, 8)])
    assert torch.equal(join_masks(masks, "first"), masks[0])
    assert torch.equal(join_masks(masks, "union"), masks[0] | masks[1])
    for mode in ("first", "union"):
        assert join_masks(masks[:0], mode).shape == (8, 8) and not join_masks(masks[:0], mode).any()


def test_maps_without_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found maps \(2, 4, 4\)"):
        measure_overlap(torch.zeros(2, 4, 4), torch.zeros(8, 8))
