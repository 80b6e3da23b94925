"""What correlations are where images do not belong together: what place alone explains, and what is left for chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from miclip_core.rosetta.accumulate import Products
from miclip_core.rosetta.crossing import Crossing


@dataclass(frozen=True, eq=False)
class Place:
    """The correlations that two members owe to place: those of the mean maps of their units over all images.

    Units that answer to a place whatever is shown have them also where images do not belong together. a_RP, b_CP: sums over
    images by position, fp32, on the grid where products are taken. first_R, first_C: sums of all, of the second over n.
    scale_R, scale_C: one over the root of the spread, 0 for constant units.
    """

    a_RP: Tensor
    b_CP: Tensor
    first_R: Tensor
    first_C: Tensor
    scale_R: Tensor
    scale_C: Tensor

    def of_rows(self, rows: slice) -> Tensor:
        """r fp32 [rows, C]."""
        r_RC = self.a_RP[rows] @ self.b_CP.T
        r_RC.addr_(self.first_R[rows], self.first_C, alpha=-1)
        return r_RC.mul_(self.scale_R[rows, None]).mul_(self.scale_C)

    def of_pairs(self, rows_N: Tensor, columns_N: Tensor) -> Tensor:
        """r fp32 [N]."""
        r_N = torch.empty(len(rows_N), device=self.a_RP.device)
        for some in torch.arange(len(rows_N), device=r_N.device).split(1 << 16):
            i, j = rows_N[some], columns_N[some]
            r_N[some] = (self.a_RP[i] * self.b_CP[j]).sum(1) - self.first_R[i] * self.first_C[j]
            r_N[some] *= self.scale_R[i] * self.scale_C[j]
        return r_N


class ShiftedProducts(Products):
    """Products of images that do not belong together; knows besides what each unit has at each position on the mean."""

    def __init__(self, crossing: Crossing, rows: int, cols: int, device: torch.device | str = "cpu") -> None:
        super().__init__(crossing, rows, cols, device)
        places = crossing.at[0] * crossing.at[1]
        self._places_a = torch.zeros(places, rows, dtype=torch.float64, device=device)
        self._places_b = torch.zeros(places, cols, dtype=torch.float64, device=device)
        self._images = 0

    def _saw(self, images: int, a_NU: Tensor, b_NU: Tensor) -> None:
        self._images += images
        for places_PU, moved_NU in ((self._places_a, a_NU), (self._places_b, b_NU)):
            places_PU += moved_NU.unflatten(0, (images, -1)).sum(0, dtype=torch.float32)

    def place(self) -> Place:
        """What place alone explains of the correlations. Raises ValueError: no image was taken."""
        if not self._images:
            raise ValueError("no image was taken, so nothing is known of places")
        a, b = self.sums_a, self.sums_b
        scales = [torch.where(of.dead, 0, of.spread.rsqrt()).float() for of in (a, b)]
        return Place(
            self._places_a.T.float().contiguous(),
            (self._places_b.T / self._images).float().contiguous(),
            a.first_U.float(),
            (b.first_U / b.n).float(),
            *scales,
        )


def above_place(r: Tensor, place: Tensor) -> Tensor:
    """How far correlations are above what place explains of them; place that speaks against them adds nothing."""
    return r - place.clamp_min(0)
