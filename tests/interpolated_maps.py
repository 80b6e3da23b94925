"""Maps in table form and, for oracles alone, the same maps interpolated and written out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from miclip_core.rosetta.grids import Grid


def make_maps(images: int, grid: Grid, units: int, seed: int = 0, heavy: bool = False) -> Tensor:
    """fp32 [B, P, U] with means and spreads of many sizes; a pattern that all seeds share, so that some correlate.

    heavy: tails as of activations (cubes of normal numbers).
    """
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99).standard_normal((images, 3, 3, 64))[..., :units]
    x = rng.standard_normal((images, *grid, units)) + 1.5 * _resize(shared, grid)
    x = x**3 if heavy else x
    spreads, means = np.exp(rng.uniform(-3, 3, units)), rng.uniform(-20, 20, units)
    return torch.from_numpy(x * spreads + means * spreads).float().flatten(1, 2)


def _resize(x_BIJU: np.ndarray, grid: Grid) -> np.ndarray:
    rows, columns = (np.arange(side) * old // side for side, old in zip(grid, x_BIJU.shape[1:3]))
    return x_BIJU[:, rows][:, :, columns]


def interpolated(rows_BPU: Tensor, grid: Grid, target: Grid) -> np.ndarray:
    """fp64 [U, B * positions of the target], by the framework's own interpolation of whole maps."""
    maps_BUIJ = rows_BPU.double().unflatten(1, grid).permute(0, 3, 1, 2)
    return interpolate(maps_BUIJ, size=target, mode="bilinear", align_corners=False).transpose(0, 1).flatten(1).numpy()


def pearson(a_BPU: Tensor, a: Grid, b_BPU: Tensor, b: Grid, target: Grid) -> np.ndarray:
    """fp64 [U_a, U_b] by numpy.corrcoef of maps that were interpolated and written out."""
    x, y = interpolated(a_BPU, a, target), interpolated(b_BPU, b, target)
    return np.corrcoef(x, y)[: len(x), len(x) :]


GRIDS: list[tuple[Grid, Grid, Grid]] = [
    ((7, 7), (14, 14), (14, 14)),
    ((14, 14), (7, 7), (14, 14)),
    ((14, 14), (16, 16), (16, 16)),
    ((7, 7), (56, 56), (56, 56)),
    ((7, 14), (14, 7), (14, 14)),
    ((1, 5), (4, 2), (4, 5)),
    ((7, 7), (7, 7), (7, 7)),
    ((7, 7), (14, 14), (4, 4)),
    ((7, 7), (5, 8), (16, 12)),
    ((7, 7), (7, 7), (14, 14)),
    ((14, 14), (5, 5), (7, 7)),
]
"""Grids of a pair, and of the target: upsampling of either, fractions, rectangles, equal, and smaller and larger targets."""
