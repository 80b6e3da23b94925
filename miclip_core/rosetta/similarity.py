"""How alike the maps of paired units are on one image: the content that guides an inversion, and scores it."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from miclip_core.rosetta.grids import Grid
from schemas.inversion import Similarity

LEAST_LENGTH = 1e-5
"""Of a standardised map; below it the cosine is taken as if it were this long."""


def resized(rows_BPU: Tensor, grid: Grid, target: Grid) -> Tensor:
    """Rows [B, P, U] of maps on `grid` as rows on `target`: bilinear, as maps are compared in mining; differentiable."""
    if grid == target:
        return rows_BPU
    maps_BUIJ = rows_BPU.transpose(1, 2).unflatten(2, grid)
    return interpolate(maps_BUIJ, size=target, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def similarity(a_BPQ: Tensor, b_BPQ: Tensor, kind: Similarity) -> Tensor:
    """Similarity [B, Q] of the standardised maps of every pair of units.

    `global_var` is the mean over positions of their product, which the statistics of the data set have scaled
    (Rosetta Neurons, Dravid et al. 2023; the thesis' Eq. 4.6, divided by the positions so that no grid weighs more);
    `image_cosine` divides by their lengths on this image, as the code released with it does.
    """
    if kind == "global_var":
        return (a_BPQ * b_BPQ).mean(1)
    return cosine_similarity(a_BPQ, b_BPQ, dim=1, eps=LEAST_LENGTH)
