"""Network Dissection (Bau et al. 2017): how well the places where a unit is on agree with the places of a concept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from miclip_core.dissect.masks import Masks
from miclip_core.dissect.thresholds import Thresholds
from miclip_core.sae.codes import Codes

DETECTOR = 0.04
"""A unit detects a concept if their IoU is larger (Bau et al. 2017)."""

_PIXELS = 1 << 22  # of upsampled maps held at once
_MASKS = 512  # of several images that are compared at once


@dataclass(frozen=True, eq=False)
class UnitMaps:
    """Maps of the Q pairs (image, unit) where the unit is on somewhere, sorted by image, each less its threshold.

    image, unit: int64 [Q]. excess: float32 [Q,I,J], activation - T_u. width: units there are.
    """

    image: Tensor
    unit: Tensor
    excess: Tensor
    width: int


def maps_above(maps_BUIJ: Tensor, thresholds: Thresholds) -> UnitMaps:
    """From the maps of U units of B images, whose thresholds these are.

    Raises:
        ValueError: the thresholds are of another number of units.
    """
    _check_units(maps_BUIJ.shape[1], thresholds)
    value_U = thresholds.value.to(maps_BUIJ.device)
    image, unit = (maps_BUIJ.flatten(2).amax(2).float() > value_U).nonzero(as_tuple=True)
    return UnitMaps(image, unit, maps_BUIJ[image, unit].float() - value_U[unit, None, None], len(value_U))


def codes_above(codes: Codes, grid: tuple[int, int], thresholds: Thresholds) -> UnitMaps:
    """From the codes of U latents at all patches (row-major) of B images; the dense maps are never made.

    A latent with a negative threshold is on wherever it is 0, so its map is made for every image.

    grid: (I, J). Raises:
        ValueError: the patches make no whole images.
    """
    _check_units(codes.width, thresholds)
    patches = grid[0] * grid[1]
    if len(codes) % patches:
        raise ValueError(f"{len(codes)} tokens are no whole number of images of {grid[0]} x {grid[1]} patches")
    value_U = thresholds.value.to(codes.values.device)
    latents, rows = codes.latents.long(), codes.rows()
    pair = rows // patches * codes.width + latents
    pairs = pair[codes.values.float() > value_U[latents]]
    negative = (value_U < 0).nonzero()[:, 0]
    if len(negative):
        images = torch.arange(len(codes) // patches, device=pair.device)
        pairs = torch.cat((pairs, (images[:, None] * codes.width + negative).flatten()))
    pairs = pairs.unique()
    image, unit = pairs // codes.width, pairs % codes.width
    excess = (-value_U[unit])[:, None].repeat(1, patches)
    place = torch.searchsorted(pairs, pair).clamp(max=max(len(pairs) - 1, 0))
    kept = pairs[place] == pair if len(pairs) else torch.zeros_like(pair, dtype=torch.bool)
    excess[place[kept], rows[kept] % patches] += codes.values[kept].float()
    if len(negative):  # codes may take all of an image below even these
        some = excess.amax(1) > 0
        image, unit, excess = image[some], unit[some], excess[some]
    return UnitMaps(image, unit, excess.view(-1, *grid), codes.width)


class Overlaps:
    """Pixels that units and concepts share, summed over images: integers, so shards add up to the same numbers.

    n_units: U. n_concepts: M. One int64 table of [U,M] is held; dissect many units in blocks, each with its own.
    """

    def __init__(self, n_units: int, n_concepts: int, device: str | torch.device = "cpu"):
        self.shared_UM = torch.zeros(n_units, n_concepts, dtype=torch.int64, device=device)
        """Pixels of both."""
        self.unit_U = torch.zeros(n_units, dtype=torch.int64, device=device)
        """Pixels where the unit is on."""
        self.concept_M = torch.zeros(n_concepts, dtype=torch.int64, device=device)
        """Pixels of the concept."""

    def add(self, maps: UnitMaps, masks: Masks) -> None:
        """Count B images. Maps are upsampled bilinearly to the size of the masks; a unit is on where that is above T_u.

        Raises:
            ValueError: another number of units or concepts, or masks of 2^24 pixels or more.
        """
        found = (maps.width, masks.n_concepts)
        if found != self.shared_UM.shape or masks.mask[:1].numel() >= 1 << 24:
            shape = tuple(self.shared_UM.shape)
            raise ValueError(f"found (units, concepts) = {found} and masks {tuple(masks.mask.shape)}, expected {shape}")
        self.concept_M.index_add_(0, masks.concept, masks.mask.flatten(1).sum(1))
        area_Q = torch.zeros_like(maps.unit)
        images = torch.arange(masks.n_images + 1, device=masks.image.device)
        first_map, first_mask = (torch.searchsorted(of, images).tolist() for of in (maps.image, masks.image))
        for start, stop in _runs(first_mask):
            chosen, pairs = slice(first_map[start], first_map[stop]), slice(first_mask[start], first_mask[stop])
            self._add_run(maps, chosen, masks, pairs, area_Q)
        self.unit_U.index_add_(0, maps.unit, area_Q)

    def _add_run(self, maps: UnitMaps, chosen: slice, masks: Masks, pairs: slice, area_Q: Tensor) -> None:
        """Count some images: these maps and these masks. area [Q]: pixels where each map is on, which are added to it."""
        image_R, concept_R, mask_RIJ = masks.image[pairs], masks.concept[pairs], masks.mask[pairs]
        rows_columns = None
        for place_N, rows, columns, on_NP in _upsampled(maps.excess[chosen], masks.mask.shape[1], masks.mask.shape[2]):
            area_Q[chosen].index_add_(0, place_N, on_NP.sum(1))
            if rows_columns != (rows, columns):
                rows_columns, mask_RP = (rows, columns), mask_RIJ[:, rows, columns].flatten(1).float()
            # Counts below 2^24 are exact in float32, whose products are the fast ones.
            shared_NR = on_NP.float() @ mask_RP.T
            n, r = (maps.image[chosen][place_N, None] == image_R).nonzero(as_tuple=True)
            cell = maps.unit[chosen][place_N[n]] * self.shared_UM.shape[1] + concept_R[r]
            self.shared_UM.view(-1).index_add_(0, cell, shared_NR[n, r].round().long())

    @property
    def union_UM(self) -> Tensor:
        """Pixels of one or both, int64."""
        return self.unit_U[:, None] + self.concept_M - self.shared_UM

    def iou(self, alive_U: Tensor | None = None) -> Tensor:
        """Intersection over union of the whole data set, float64 [U,M] in [0,1].

        alive: bool [U], units that are above their threshold somewhere (`thresholds.above > 0`); the others have no
        score. NaN: no score, also for concepts that were never there.
        """
        iou_UM = self.shared_UM / self.union_UM.clamp(min=1).double()
        iou_UM[:, self.concept_M == 0] = torch.nan
        if alive_U is not None:
            iou_UM[~alive_U.to(iou_UM.device)] = torch.nan
        return iou_UM


def _check_units(found: int, thresholds: Thresholds) -> None:
    if found != len(thresholds.value):
        raise ValueError(f"found maps of {found} units and thresholds of {len(thresholds.value)}; give the same ones")


def _runs(first_mask: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Images [start, stop), as many as have few masks together: all their maps are compared with all their masks."""
    images, start = len(first_mask) - 1, 0
    for stop in range(1, images + 1):
        if stop == images or first_mask[stop + 1] - first_mask[start] > _MASKS:
            yield start, stop
            start = stop


def _upsampled(excess_QIJ: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, slice, slice, Tensor]]:
    """Where maps are on, interpolated bilinearly: (which maps [N], rows and columns of pixels, on [N,P] there).

    Between the same four neighbours lie a rectangle of pixels, which is looked at for maps with one of the four above 0:
    few, since units are on at few patches. What is interpolated is the excess over the threshold: its sign is that of the
    interpolated activation less the threshold, and is exact where neighbours equal the threshold, which a weighted sum of
    activations is not.
    """
    rows, columns = (
        _bands(n, m, excess_QIJ.device) for n, m in zip(excess_QIJ.shape[1:], (height, width), strict=True)
    )
    above_QIJ = excess_QIJ > 0
    near_QIJ = above_QIJ[:, [r.near for r in rows]] | above_QIJ[:, [r.far for r in rows]]
    near_QIJ = near_QIJ[:, :, [c.near for c in columns]] | near_QIJ[:, :, [c.far for c in columns]]
    cell, place = near_QIJ.flatten(1).T.nonzero(as_tuple=True)
    counts = torch.bincount(cell, minlength=len(rows) * len(columns)).tolist()
    for number, place_N in enumerate(place.split(counts)):
        row, column = rows[number // len(columns)], columns[number % len(columns)]
        for some_N in place_N.split(max(1, _PIXELS // (len(row.weight) * len(column.weight)))) if len(place_N) else ():
            yield some_N, row.pixels, column.pixels, (_between(excess_QIJ[some_N], row, column) > 0).flatten(1)


class _Band(NamedTuple):
    """Pixels along one axis between the same two patches, and the weight of the second of these for each of them."""

    near: int
    far: int
    pixels: slice
    weight: Tensor


def _bands(patches: int, pixels: int, device: torch.device) -> list[_Band]:
    """All pixels of an axis; those beyond the centre of the first or last patch are as that patch."""
    at = ((torch.arange(pixels) + 0.5) * (patches / pixels) - 0.5).clamp(min=0)
    near = at.long().clamp(max=patches - 1)
    numbers, counts = torch.unique_consecutive(near, return_counts=True)
    ends = counts.cumsum(0).tolist()
    bands = [
        (i, slice(end - count, end)) for i, count, end in zip(numbers.tolist(), counts.tolist(), ends, strict=True)
    ]
    return [_Band(i, min(i + 1, patches - 1), part, (at[part] - i).to(device)) for i, part in bands]


def _between(excess_NIJ: Tensor, row: _Band, column: _Band) -> Tensor:
    """Interpolated pixels of one rectangle, [N,rows,columns]."""

    def along(i: int) -> Tensor:
        near, far = excess_NIJ[:, i, column.near, None], excess_NIJ[:, i, column.far, None]
        return (near * (1 - column.weight) + far * column.weight)[:, None]

    weight = row.weight[:, None]
    return along(row.near) * (1 - weight) + along(row.far) * weight
