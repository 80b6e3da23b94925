"""How fast units are dissected by masks, beside the straightforward way; run with `make bench`, prints ratios."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from miclip_core.dissect.masks import Masks
from miclip_core.dissect.netdissect import Overlaps, maps_above
from miclip_core.dissect.thresholds import find_thresholds

pytestmark = pytest.mark.bench

IMAGES, UNITS, GRID, SIZE, CONCEPTS = 16, 768, 14, 112, 30


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def maps() -> Tensor:
    """Maps of B images in which half of all units are high at a few neighbouring patches, as features are."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(IMAGES, UNITS, GRID, GRID, generator=generator).half().float()
    place = torch.rand(IMAGES, UNITS, 3, 3, generator=generator) < 0.02
    return low + 8 * interpolate(place.float(), (GRID, GRID))


def straightforward(maps_BUIJ: Tensor, value_U: Tensor, mask_BMIJ: Tensor) -> tuple[Tensor, Tensor]:
    """Every map of every unit upsampled, and one product of bits per image."""
    inter = torch.zeros(UNITS, CONCEPTS, dtype=torch.int64)
    union = torch.zeros_like(inter)
    for maps_UIJ, mask_MIJ in zip(maps_BUIJ, mask_BMIJ, strict=True):
        large = interpolate(maps_UIJ[None], (SIZE, SIZE), mode="bilinear", align_corners=False)[0]
        on_UP, mask_MP = (large > value_U[:, None, None]).flatten(1).float(), mask_MIJ.flatten(1).float()
        shared = (on_UP @ mask_MP.T).long()
        inter += shared
        union += on_UP.sum(1).long()[:, None] + mask_MP.sum(1).long() - shared
    return inter, union


def test_overlaps_beside_upsampling_everything() -> None:
    maps_BUIJ = maps()
    tokens = maps_BUIJ.flatten(2).transpose(1, 2).flatten(0, 1).contiguous()
    generator = torch.Generator().manual_seed(1)
    shown = torch.rand(IMAGES, CONCEPTS, 1, 1, generator=generator) < 0.2
    mask_BMIJ = (interpolate(torch.rand(IMAGES, CONCEPTS, 4, 4, generator=generator), (SIZE, SIZE)) > 0.6) & shown
    found = find_thresholds(lambda: [tokens], UNITS)
    masks, overlaps = Masks.from_dense(mask_BMIJ), Overlaps(UNITS, CONCEPTS)
    ours, slow = [], []
    for _ in range(3):
        overlaps = Overlaps(UNITS, CONCEPTS)
        ours.append(seconds(lambda: overlaps.add(maps_above(maps_BUIJ, found), masks)))  # noqa: B023
        slow.append(seconds(lambda: straightforward(maps_BUIJ, found.value, mask_BMIJ)))
    inter, union = straightforward(maps_BUIJ, found.value, mask_BMIJ)
    differing = (overlaps.shared_UM != inter).float().mean().item()
    assert torch.allclose(overlaps.iou(), (inter / union).double(), atol=2e-3, equal_nan=True)
    print(f"\n{IMAGES} images, {UNITS} units: {min(ours):.2f} s, {min(slow) / min(ours):.1f} x faster than everything; "
          f"{differing:.1%} of the counts differ by rounding")  # fmt: skip


def test_thresholds_beside_sorting() -> None:
    tokens = torch.randn(20_000, UNITS, generator=torch.Generator().manual_seed(0)).half()
    full = tokens.float()
    both = seconds(lambda: find_thresholds(lambda: [full], UNITS))
    half = seconds(lambda: find_thresholds(lambda: [tokens], UNITS, half=True))
    by_sorting = seconds(lambda: full.T.contiguous().sort(1))
    print(f"\n{full.numel() / 1e6:.0f} M activations: {both:.2f} s ({by_sorting / both:.2f} x the speed of sorting), "
          f"half precision {half:.2f} s ({by_sorting / half:.2f} x)")  # fmt: skip
