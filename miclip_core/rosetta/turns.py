"""Maps turned by quarter turns, for a null that keeps no spatial prior: what is at the centre of most images stays there
when images are shifted, what is at the top does not when they are turned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from miclip_core.rosetta.grids import Grid
from schemas.errors import BadGrid

_STREAM = 90


def quarter_turns(indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64 [B]: 0 to 3 turns for each image, all as likely: a function of its number alone."""
    return np.array([np.random.default_rng((_STREAM, int(i))).integers(4) for i in indices], np.int64)


def turned(rows_BPU: Tensor, grid: Grid, turns_B: np.ndarray) -> Tensor:
    """Rows [B, P, U] of maps on a square grid, those of each image turned by its number of quarter turns (counterclockwise).

    Raises:
        BadGrid: the grid is not square.
    """
    if grid[0] != grid[1]:
        raise BadGrid(f"grid {grid[0]}x{grid[1]}; only maps on a square grid can be turned by 90 degrees")
    out = rows_BPU.clone()
    for turns in (1, 2, 3):
        chosen = torch.from_numpy(np.flatnonzero(turns_B == turns)).to(rows_BPU.device)
        if len(chosen):
            maps_BHWU = rows_BPU[chosen].unflatten(1, grid)
            out[chosen] = torch.rot90(maps_BHWU, turns, (1, 2)).flatten(1, 2)
    return out
