"""Network Dissection (Bau et al. 2017): how well the places where a unit is on agree with the places of a concept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from miclip_core.dissect.masks import Masks
from miclip_core.dissect.thresholds import Thresholds
from miclip_core.sae.codes import Codes

DETECTOR = 0.04
"""A unit detects a concept if their IoU is larger (Bau et al. 2017)."""

_PIXELS = 1 << 24  # of upsampled maps held at once


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
    """Pixels that units and concepts share, summed over images: integers, so shards merge to the same numbers.

    n_units: U. n_concepts: M. One int64 table of [U,M] is held, and another where some images are annotated with some
    concepts only; dissect many units in blocks, each with its own.
    """

    def __init__(self, n_units: int, n_concepts: int, device: str | torch.device = "cpu"):
        self.shared_UM = torch.zeros(n_units, n_concepts, dtype=torch.int64, device=device)
        """Pixels of both."""
        self.unit_UM = torch.zeros(n_units, 1, dtype=torch.int64, device=device)
        """Pixels where the unit is on, in images annotated with the concept: [U,1] while all are with all."""
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
        mask_QP = masks.mask.flatten(1)
        self.concept_M.index_add_(0, masks.concept, mask_QP.sum(1))
        starts = torch.searchsorted(masks.image, torch.arange(masks.n_images + 1, device=masks.image.device)).tolist()
        for image, unit, on_QP in _upsampled(maps, tuple(masks.mask.shape[1:])):  # type: ignore[arg-type]
            self._add_areas(image, unit, on_QP.sum(1), masks.annotated)
            numbers, counts = torch.unique_consecutive(image, return_counts=True)
            ends = counts.cumsum(0).tolist()
            for b, count, end in zip(numbers.tolist(), counts.tolist(), ends, strict=True):
                pairs = slice(starts[b], starts[b + 1])
                here = slice(end - count, end)
                # Counts below 2^24 are exact in float32, whose products are the fast ones.
                shared_QQ = on_QP[here].float() @ mask_QP[pairs].float().T
                self.shared_UM[unit[here, None], masks.concept[None, pairs]] += shared_QQ.round().long()

    def merge(self, other: Overlaps) -> None:
        """Take in the counts of other images."""
        self.shared_UM += other.shared_UM
        self.unit_UM = self.unit_UM + other.unit_UM
        self.concept_M += other.concept_M

    @property
    def union_UM(self) -> Tensor:
        """Pixels of one or both, int64."""
        return self.unit_UM + self.concept_M - self.shared_UM

    def iou(self, alive_U: Tensor | None = None) -> Tensor:
        """Intersection over union of the whole data set, float64 [U,M] in [0,1], on images annotated with the concept.

        alive: bool [U], units that are above their threshold somewhere (`thresholds.above > 0`); the others have no
        score. NaN: no score, also for concepts that were never there.
        """
        iou_UM = self.shared_UM / self.union_UM.clamp(min=1).double()
        iou_UM[:, self.concept_M == 0] = torch.nan
        if alive_U is not None:
            iou_UM[~alive_U.to(iou_UM.device)] = torch.nan
        return iou_UM

    def _add_areas(self, image: Tensor, unit: Tensor, area: Tensor, annotated_BM: Tensor | None) -> None:
        if annotated_BM is None:
            self.unit_UM += torch.zeros_like(self.unit_UM[:, 0]).index_add_(0, unit, area)[:, None]
        else:
            if self.unit_UM.shape != self.shared_UM.shape:
                self.unit_UM = self.unit_UM.repeat(1, self.shared_UM.shape[1])
            self.unit_UM.index_add_(0, unit, area[:, None] * annotated_BM[image])


def _check_units(found: int, thresholds: Thresholds) -> None:
    if found != len(thresholds.value):
        raise ValueError(f"found maps of {found} units and thresholds of {len(thresholds.value)}; give the same ones")


def _upsampled(maps: UnitMaps, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(image, unit, on [Q,P]) in pieces that fit.

    What is interpolated is the excess over the threshold: its sign is that of the interpolated activation less the
    threshold, and is exact where neighbours equal the threshold, which a weighted sum of activations is not.
    """
    step = max(1, _PIXELS // (size[0] * size[1]))
    for first in range(0, len(maps.unit), step):
        part = slice(first, first + step)
        large = interpolate(maps.excess[part, None], size, mode="bilinear", align_corners=False)
        yield maps.image[part], maps.unit[part], (large[:, 0] > 0).flatten(1)
