"""One activation per image and unit, from the rows of an image's positions: their mean or their maximum."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from miclip_core.sae.codes import Codes

Pooling = Literal["mean", "max"]


def pool_rows(t_NW: Tensor, rows_per_image: int, pooling: Pooling) -> Tensor:
    """From one row per position [N,W], the rows of an image one after another, to one per image, float32 [B,W].

    Raises:
        ValueError: rows that make no whole images.
    """
    t_BRW = t_NW.float().unflatten(0, (_images(len(t_NW), rows_per_image), rows_per_image))
    return t_BRW.mean(1) if pooling == "mean" else t_BRW.amax(1)


def pool_codes(codes: Codes, rows_per_image: int, pooling: Pooling) -> Tensor:
    """The same from sparse codes, float32 [B,U]: latents that did not fire count as 0; never all positions at once.

    Raises:
        ValueError: rows that make no whole images.
    """
    images = _images(len(codes), rows_per_image)
    cells, values = codes.rows() // rows_per_image * codes.width + codes.latents, codes.values.float()
    pooled = values.new_zeros(images * codes.width)
    if pooling == "mean":
        pooled.index_add_(0, cells, values).div_(rows_per_image)
    else:
        pooled.scatter_reduce_(0, cells, values, "amax")
        if bool((values < 0).any()):  # where a latent fired at every position, 0 is none of its values
            cell, place, count = cells.unique(return_inverse=True, return_counts=True)
            largest = values.new_full((len(cell),), -torch.inf).scatter_reduce_(0, place, values, "amax")
            everywhere = count == rows_per_image
            pooled[cell[everywhere]] = largest[everywhere]
    return pooled.view(images, codes.width)


def _images(rows: int, rows_per_image: int) -> int:
    if rows_per_image < 1 or rows % rows_per_image:
        raise ValueError(f"{rows} rows make no whole images of {rows_per_image} rows; expected those of all positions")
    return rows // rows_per_image
