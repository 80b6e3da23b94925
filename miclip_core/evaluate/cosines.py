"""Cosines of vectors that may not have one: float32 on unit rows, NaN where a row has no direction."""

from __future__ import annotations

import torch
from torch import Tensor


def directions(rows_NE: Tensor) -> Tensor:
    """The rows [N, E] in float32 at length 1; NaN throughout for a row of length 0 or with a value that is not finite."""
    rows_NE = rows_NE.float()
    length_N1 = torch.linalg.vector_norm(rows_NE, dim=1, keepdim=True)
    return torch.where((length_N1 > 0) & length_N1.isfinite(), rows_NE / length_N1, torch.nan)


def row_cosines(a_NE: Tensor, b_NE: Tensor) -> Tensor:
    """Cosine of each row of a with the same row of b, float32 [N] in [-1, 1]; NaN where either has no direction."""
    return (directions(a_NE) * directions(b_NE)).sum(1).clamp(-1, 1)
