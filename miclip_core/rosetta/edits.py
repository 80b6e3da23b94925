"""Edits of maps before a latent is sought that has them: zoom, shift, copy and paste, remove, strengthen."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from miclip_core.rosetta.grids import Grid
from schemas.errors import BadGrid
from schemas.inversion import Edit

_WAYS = {"shift_left": (0, -1), "shift_right": (0, 1), "shift_up": (-1, 0), "shift_down": (1, 0)}
"""Rows down and columns to the right."""


def can_edit(grid: Grid, edit: Edit) -> bool:
    """Whether maps on a grid can be edited so: a shift by less than one position moves nothing."""
    return all(side * edit.amount >= 1 for side in _shifted_sides(grid, edit))


def edited(rows_BPU: Tensor, grid: Grid, edit: Edit) -> Tensor:
    """Raw maps as rows [B, P, U], edited; every map on its own (Dravid et al. 2023, Rosetta Neurons, sec. 4).

    zoom: bilinear, about the centre. shift: by the nearest whole number of positions, with zeros behind. copy_paste: the
    left half of the maps shifted to the left beside the right half of those shifted to the right. remove: everywhere the
    minimum of the map. strengthen: what rises above that minimum, times the amount.

    Raises:
        BadGrid: a shift by less than one position.
    """
    if not can_edit(grid, edit):
        raise BadGrid(
            f"{edit}: on a grid of {grid[0]}x{grid[1]} that is less than one position; leave such maps out, or shift further"
        )
    if edit.name == "zoom":
        return _zoomed(rows_BPU, grid, edit.amount)
    if edit.name == "copy_paste":
        return _beside(rows_BPU, grid, edit.amount)
    if edit.name in _WAYS:
        return _shifted(rows_BPU, grid, *_WAYS[edit.name], edit.amount)
    low_BPU = rows_BPU.amin(1, keepdim=True).expand_as(rows_BPU)
    return low_BPU + edit.amount * (rows_BPU - low_BPU)


def _shifted_sides(grid: Grid, edit: Edit) -> list[int]:
    if edit.name == "copy_paste":
        return [grid[1]]
    return [side for side, way in zip(grid, _WAYS.get(edit.name, (0, 0)), strict=True) if way]


def _zoomed(rows_BPU: Tensor, grid: Grid, factor: float) -> Tensor:
    """For a factor of 2 and even sides the central crop of the maps enlarged; for odd sides exactly central as well."""
    maps_BUIJ = rows_BPU.transpose(1, 2).unflatten(2, grid)
    about_centre = torch.eye(2, 3, dtype=maps_BUIJ.dtype, device=maps_BUIJ.device) / factor
    places = affine_grid(about_centre.expand(len(maps_BUIJ), 2, 3), list(maps_BUIJ.shape), align_corners=False)
    zoomed_BUIJ = grid_sample(maps_BUIJ, places, mode="bilinear", padding_mode="border", align_corners=False)
    return zoomed_BUIJ.flatten(2).transpose(1, 2)


def _shifted(rows_BPU: Tensor, grid: Grid, down: int, right: int, share: float) -> Tensor:
    steps = [way * int(side * share + 0.5) for side, way in zip(grid, (down, right), strict=True)]
    maps_BIJU = rows_BPU.unflatten(1, grid)
    moved_BIJU = torch.zeros_like(maps_BIJU)
    (to_i, from_i), (to_j, from_j) = (_slices(side, step) for side, step in zip(grid, steps, strict=True))
    moved_BIJU[:, to_i, to_j] = maps_BIJU[:, from_i, from_j]
    return moved_BIJU.flatten(1, 2)


def _slices(side: int, step: int) -> tuple[slice, slice]:
    """Where values land along an axis, and where they come from."""
    return slice(max(0, step), side + min(0, step)), slice(max(0, -step), side + min(0, -step))


def _beside(rows_BPU: Tensor, grid: Grid, share: float) -> Tensor:
    left_BIJU, right_BIJU = (_shifted(rows_BPU, grid, 0, way, share).unflatten(1, grid) for way in (-1, 1))
    half = grid[1] // 2
    return torch.cat([left_BIJU[:, :, :half], right_BIJU[:, :, half:]], 2).flatten(1, 2)
