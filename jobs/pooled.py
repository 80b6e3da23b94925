"""One activation per image from a stored site: the rows of its positions, pooled."""

from __future__ import annotations

import torch
from torch import Tensor

from jobs.protocol import Inputs
from jobs.sae_tokens import SiteTokens
from jobs.tokens.sources import TableSource
from miclip_core.dissect.pool import Pooling, pool_rows

BLOCK = 256
"""Rows of the index that are read together."""


def read_pooled(
    inputs: Inputs, tokens: SiteTokens, per_image: int, width: int, pool: Pooling
) -> tuple[list[tuple[int, str]], Tensor]:
    """(image_index, image_id) of every image that has activations, by image_index, and float32 [images, width].

    per_image: rows of one image. Raises: KeyMissing, DamagedPart, NonFiniteActivation as `TableSource.read`.
    """
    source, total = TableSource(inputs, [tokens]), tokens.forward.rows
    images: list[tuple[int, str]] = []
    parts: list[Tensor] = []
    for start in range(0, total, BLOCK):
        for found in source.read([(start, min(start + BLOCK, total))], [tokens.site]):
            rows = found[tokens.site]
            if len(rows.values):
                images += rows.images
                parts.append(pool_rows(rows.values, per_image, pool))
    return images, torch.cat(parts) if parts else torch.empty(0, width)
