"""Similarity of units and concepts by how well a concept's order of a unit's most exciting images is the unit's own.

Oikarinen and Weng (2023), "CLIP-Dissect", `rank_reorder`. With t the activations of the unit's top images, falling, and
t' the same activations in the order in which the concept ranks these images,

    score = -(mean |t - t'|^p / mean |t - random permutations of t|^p) / mean(P over these images)^scale_p
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear

from miclip_core.dissect.embeddings import unit_concepts, unit_images
from miclip_core.dissect.top_images import TopImages
from miclip_core.shuffle import permute
from schemas.errors import TooFewImages

BLOCK_COSINES = 1 << 25
"""Cosines of images x concepts that exist at once: 128 MB."""
BLOCK_KEYS = 1 << 20
"""Keys of concepts x images of one unit that are sorted at once: 8 MB."""


@dataclass(frozen=True)
class RankReorder:
    """p: power of differences; top_fraction: share of all images that is ranked; scale_p: power of the mean cosine."""

    p: float = 3.0
    top_fraction: float = 0.05
    scale_p: float = 0.5

    def top_k(self, images: int) -> int:
        """Images of a unit that are ranked, of so many in all. Raises: TooFewImages."""
        k = math.floor(self.top_fraction * images)
        if k < 2:
            raise TooFewImages(
                f"rank_reorder ranks {self.top_fraction:g} of the images, which of {images} is {k}; expected at least 2"
            )
        return k


def shuffles(k: int, seed: int = 0, count: int = 5) -> Tensor:
    """The random permutations of k images that scores are divided by, the same for all units: int64 [count, k]."""
    return torch.from_numpy(np.stack([permute(k, seed, "rank_reorder", i) for i in range(count)]))


def rank_reorder(
    settings: RankReorder, top: TopImages, x_RE: Tensor, concepts_ME: Tensor, permutations_SK: Tensor
) -> Tensor:
    """Score of every unit in `top` and every concept, float32 [U,M], at most 0.

    top: of these units, over all images, with k at least K = settings.top_k(top.seen). x [R,E]: CLIP embeddings of the
    images `top.first(K).used()`, in that order. concepts [M,E]: CLIP embeddings. permutations: int64 [S,K], such as
    `shuffles(K)`. Images with equal cosines are ranked by activation. NaN where the K activations of a unit do not differ
    (or no permutation changes them), and where the mean cosine of its images with the concept is not above 0.

    A key is the cosine's bits above the image's place in the unit's own order, so one sort of plain integers ranks all.

    Raises:
        TooFewImages: fewer than K were kept, or K is below 2. BadAlignment: embeddings without a direction.
    """
    best = top.first(settings.top_k(top.seen))
    places_UK = best.places()
    x_RE = unit_images(x_RE, len(best.used()), torch.float32)
    c_ME = unit_concepts(concepts_ME, x_RE.shape[1], torch.float32)
    t_UK = (best.values - best.values[:, -1:]) / (best.values[:, :1] - best.values[:, -1:])  # the score knows no scale
    blocks = c_ME.split(max(1, BLOCK_COSINES // len(x_RE)))
    error_UM = torch.cat([_errors(t_UK, places_UK, linear(x_RE, c), settings.p) for c in blocks], 1)
    base_U = (t_UK[:, None] - t_UK[:, permutations_SK.to(t_UK.device)]).abs().pow(settings.p).mean((1, 2))
    mean_UM = linear(embedding_bag(places_UK, x_RE.double(), mode="mean"), c_ME.double())
    scores_UM = -(error_UM / base_U[:, None]) / mean_UM.pow(settings.scale_p)
    return scores_UM.masked_fill(~scores_UM.isfinite(), torch.nan).float()


def _errors(t_UK: Tensor, places_UK: Tensor, p_RM: Tensor, power: float) -> Tensor:
    """mean |t - t'|^power of every unit and concept, float32 [U,M]."""
    falling_RM = _ordered_bits(-p_RM)
    k, own_K = t_UK.shape[1], torch.arange(t_UK.shape[1], device=t_UK.device)
    out_UM = t_UK.new_empty(len(t_UK), p_RM.shape[1])
    for columns in torch.arange(p_RM.shape[1]).split(max(1, BLOCK_KEYS // k)):
        some_RM = falling_RM[:, columns[0] : columns[-1] + 1].contiguous()
        for u, (t_K, places_K) in enumerate(zip(t_UK, places_UK)):
            keys_MK = some_RM.index_select(0, places_K).T.to(torch.int64, memory_format=torch.contiguous_format)
            order_MK = _sorted(keys_MK.bitwise_left_shift_(32).bitwise_or_(own_K)).bitwise_and_(0xFFFFFFFF)
            reordered_MK = t_K.index_select(0, order_MK.view(-1)).view(order_MK.shape)
            out_UM[u, columns[0] : columns[-1] + 1] = reordered_MK.sub_(t_K).abs_().pow_(power).mean(1)
    return out_UM


def _ordered_bits(x: Tensor) -> Tensor:
    """Integers int32 that sort as the float32 numbers do."""
    bits = (x + 0.0).view(torch.int32)  # the sum makes -0 of the same bits as 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _sorted(keys: Tensor) -> Tensor:
    """Rows of keys in ascending order; numpy sorts integers on CPU several times faster than torch."""
    if keys.device.type != "cpu":
        return keys.sort(dim=1).values
    keys.numpy().sort(axis=1)
    return keys
