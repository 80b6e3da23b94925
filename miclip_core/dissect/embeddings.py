"""CLIP embeddings as similarities take them: one per image, those of concepts of the same width, all of length 1."""

from __future__ import annotations

import torch
from torch import Tensor

from miclip_core.align.rows import check_width, unit_rows
from schemas.errors import BadAlignment


def unit_images(x_NE: Tensor, images: int, dtype: torch.dtype) -> Tensor:
    """Embeddings of so many images at length 1. Raises: BadAlignment (another number, or rows without a direction)."""
    if len(x_NE) != images:
        raise BadAlignment(f"expected one CLIP embedding for each of {images} images, in their order, got {len(x_NE)}")
    return unit_rows("image embeddings", x_NE.to(dtype))


def unit_concepts(concepts_ME: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Embeddings of concepts at length 1. Raises: BadAlignment (of another CLIP than the images, or without a direction)."""
    check_width("concept embeddings", concepts_ME, width)
    return unit_rows("concept embeddings", concepts_ME.to(dtype))
