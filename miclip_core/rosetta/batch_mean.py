"""The similarity of the released code of Rosetta Neurons, which is no correlation: a mean over batches of cosines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from miclip_core.rosetta.crossing import Crossing, Side
from miclip_core.rosetta.standardise import Scale, standardised

EPSILON = 1e-5
"""Added to every standard deviation."""


class BatchScale:
    """Mean of the means of batches, and root of the mean of their variances (n - 1), of native maps, plus EPSILON."""

    def __init__(self) -> None:
        self._batches = 0
        self._mean_U: np.ndarray | float = 0.0
        self._variance_U: np.ndarray | float = 0.0

    def add(self, rows_BPU: Tensor) -> None:
        """Take one batch; which images are in one batch is part of the result."""
        x = rows_BPU.flatten(0, 1).double()
        self._mean_U = self._mean_U + x.mean(0).cpu().numpy()
        self._variance_U = self._variance_U + x.var(0, correction=1).cpu().numpy()
        self._batches += 1

    @property
    def scale(self) -> Scale:
        """What maps are standardised by.

        Raises:
            ValueError: no batch was added.
        """
        if not self._batches:
            raise ValueError("no batch was added; the scale of batches is the mean over at least one")
        sd = np.sqrt(np.asarray(self._variance_U) / self._batches) + EPSILON
        return Scale(np.asarray(self._mean_U) / self._batches, sd)


class BatchMeanCosine:
    """Mean over batches of the cosine, not centred, of standardised maps that were interpolated: fp32 [rows, cols].

    A cosine with a map that is 0 all over a batch counts as 0. It depends on how images are cut into batches (ten in the
    released code), and on their means, so it is no Pearson correlation (`accumulate.Products`). Dravid et al. 2023,
    Rosetta Neurons, released code.
    """

    def __init__(self, crossing: Crossing, rows: int, cols: int, device: torch.device | str = "cpu") -> None:
        self.crossing = crossing
        self._total_AB = torch.zeros(rows, cols, device=device)
        self._batches = 0

    @torch.no_grad()
    def add(self, a_BPU: Tensor, b_BPU: Tensor) -> None:
        """Take the standardised maps of one batch, fp32: [B, P_a, rows] and [B, P_b, cols].

        Raises:
            ValueError: other numbers of images.
        """
        if len(a_BPU) != len(b_BPU):
            raise ValueError(f"{len(a_BPU)} and {len(b_BPU)} images; expected the same images of both members")
        a_NU, b_NU = (_directions(side, rows) for side, rows in zip(self.crossing.sides, (a_BPU, b_BPU)))
        self._total_AB.addmm_(a_NU.T, b_NU)
        self._batches += 1

    def merge(self, other: BatchMeanCosine) -> None:
        """Join what was taken of other batches."""
        self._total_AB += other._total_AB
        self._batches += other._batches

    def similarities(self) -> Tensor:
        """The mean so far, fp32 [rows, cols].

        Raises:
            ValueError: no batch was added.
        """
        if not self._batches:
            raise ValueError("no batch was added; this similarity is the mean over at least one")
        return self._total_AB / self._batches


def batch_mean_cosine(a_batches: Sequence[Tensor], b_batches: Sequence[Tensor], crossing: Crossing) -> Tensor:
    """The similarity fp32 [U_a, U_b] of raw maps [B, P, U] of the same batches of images.

    Raises:
        ValueError: other numbers of batches or images, or no batches.
    """
    scale_a, scale_b = _scale(a_batches), _scale(b_batches)
    found = BatchMeanCosine(crossing, a_batches[0].shape[2], b_batches[0].shape[2], a_batches[0].device)
    for a_BPU, b_BPU in zip(a_batches, b_batches, strict=True):
        found.add(standardised(a_BPU, scale_a)[0], standardised(b_BPU, scale_b)[0])
    return found.similarities()


def _scale(batches: Iterable[Tensor]) -> Scale:
    made = BatchScale()
    for rows_BPU in batches:
        made.add(rows_BPU)
    return made.scale


def _directions(side: Side, z_BPU: Tensor) -> Tensor:
    """Maps as they are multiplied [B*P_at, U], over the length of what they are interpolated to; 0 where that is 0."""
    settled_BPU = side.settle(z_BPU)
    crossed_BPU = side.cross(settled_BPU)
    _, squares_U = side.sums(settled_BPU, crossed_BPU)
    inverse_U = squares_U.clamp_min(0).rsqrt()
    return (crossed_BPU * inverse_U.where(squares_U > 0, 0).to(crossed_BPU.dtype)).flatten(0, 1)
