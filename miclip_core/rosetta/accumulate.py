"""Correlations of a tile of units of two members, accumulated while image chunks go by.

    r = (S12 - S1 S1' / n) / sqrt((S2 - S1^2 / n) (S2' - S1'^2 / n))

with all sums over images and positions of the interpolated maps: Pearson's correlation as Dravid et al. 2023, Rosetta
Neurons, sec. 3.1, take it, from sums that are additive over images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miclip_core.rosetta.crossing import Crossing, Side
from miclip_core.rosetta.memory import CACHED, CHUNKS

NARROW = 16
"""A product of fewer columns may be added term by term to what is there, with a rounding error that grows with all images;
from here on kernels sum hundreds of terms first."""


class Sums:
    """Sum and sum of squares fp64 [U] of interpolated maps, and how many samples they are of."""

    def __init__(self, units: int, device: torch.device | str = "cpu") -> None:
        self.n = 0
        self.first_U = torch.zeros(units, dtype=torch.float64, device=device)
        self.second_U = torch.zeros(units, dtype=torch.float64, device=device)

    def add(self, side: Side, settled_BPU: Tensor, crossed_BPU: Tensor) -> None:
        """Take rows of this side in both forms."""
        first_U, second_U = side.sums(settled_BPU, crossed_BPU)
        self.first_U += first_U
        self.second_U += second_U
        self.n += len(settled_BPU) * side.target[0] * side.target[1]

    @property
    def spread(self) -> Tensor:
        """fp64 [U]: sum of squared differences from the mean."""
        return self.second_U - self.first_U.square() / self.n

    @property
    def dead(self) -> Tensor:
        """bool [U]: no unit of z that is constant, up to rounding, on the target: also one whose only peaks fall between
        the positions of a smaller canonical grid."""
        least_U = torch.maximum(1e-6 * self.second_U, torch.full_like(self.second_U, 1e-12 * self.n))
        return ~(self.spread > least_U)


class Products:
    """The accumulator of one tile: sums of products fp32 [rows, cols] on the device, and the moments of both sides.

    `memory.products_bytes` says what memory it takes.
    """

    def __init__(self, crossing: Crossing, rows: int, cols: int, device: torch.device | str = "cpu") -> None:
        self.crossing = crossing
        self.sums_a, self.sums_b = Sums(rows, device), Sums(cols, device)
        self._products_AB: Tensor | None = torch.zeros(rows, cols, device=device)
        self._earlier_AB: Tensor | None = None
        self._chunks = 0

    @torch.no_grad()
    def add(self, a_BPU: Tensor, b_BPU: Tensor) -> None:
        """Take standardised maps of the same images: [B, P_a, rows] and [B, P_b, cols], in fp32, fp16 or bf16.

        What is multiplied is rounded to that type again after it was moved; sums are fp32.

        Raises:
            ValueError: other numbers of images or units, or correlations were taken already.
        """
        if self._products_AB is None:
            raise ValueError("the correlations of this tile were taken; make new products to add images")
        shape = tuple(self._products_AB.shape)
        if len(a_BPU) != len(b_BPU) or (a_BPU.shape[2], b_BPU.shape[2]) != shape:
            raise ValueError(
                f"maps {tuple(a_BPU.shape)} and {tuple(b_BPU.shape)}; expected units {shape}, equal images"
            )
        if len(a_BPU) == 0:
            return
        if self._chunks and self._chunks % CHUNKS == 0:
            self._put_aside(self._products_AB)
        side_a, side_b = self.crossing.sides
        a_NU, b_NU = _moved(side_a, a_BPU, self.sums_a), _moved(side_b, b_BPU, self.sums_b)
        _multiply_into(self._products_AB, a_NU, b_NU)
        self._chunks += 1
        self._saw(len(a_BPU), a_NU, b_NU)

    def _saw(self, images: int, a_NU: Tensor, b_NU: Tensor) -> None:
        """Whoever needs more of the maps than their products takes it here."""

    def correlations(self, absolute: bool = False) -> Tensor:
        """r fp32 [rows, cols], or |r|; minus infinity for units that are constant. Ends this accumulator: the result is
        written over the sums, so that nothing else of the size of the tile is ever made.

        Raises:
            ValueError: they were taken already, or there were fewer than two samples.
        """
        if self._products_AB is None or self.sums_a.n < 2:
            raise ValueError(f"correlations of {self.sums_a.n} samples; they are taken once, from at least two samples")
        r_AB, self._products_AB = self._products_AB, None
        if self._earlier_AB is not None:
            r_AB += self._earlier_AB
            self._earlier_AB = None
        a, b = self.sums_a, self.sums_b
        r_AB.addr_(a.first_U.float(), (b.first_U / b.n).float(), alpha=-1)
        r_AB.mul_(a.spread.rsqrt().float()[:, None]).mul_(b.spread.rsqrt().float())
        if absolute:
            r_AB.abs_()
        r_AB[a.dead] = -torch.inf
        r_AB[:, b.dead] = -torch.inf
        return r_AB

    def _put_aside(self, products_AB: Tensor) -> None:
        if self._earlier_AB is None:
            self._earlier_AB = torch.zeros_like(products_AB)
        self._earlier_AB += products_AB
        products_AB.zero_()


def _moved(side: Side, z_BPU: Tensor, sums: Sums) -> Tensor:
    """Maps as they are multiplied [B*P_at, U]; adds their moments, while what was read is still near the processor."""
    images, places, units = z_BPU.shape
    on_cpu = z_BPU.device.type == "cpu"
    step = max(1, CACHED * torch.get_num_threads() // max(1, places * units)) if on_cpu else images
    kept = torch.float32 if on_cpu else z_BPU.dtype  # processors multiply fp32 only
    as_is = side.stays and z_BPU.dtype == kept
    out = z_BPU if as_is else z_BPU.new_empty(images, side.at[0] * side.at[1], units, dtype=kept)
    for first in range(0, images, step):
        settled, crossed = side.settle(z_BPU[first : first + step].float()), out[first : first + step]
        if not as_is:
            crossed.copy_(side.cross(settled).to(z_BPU.dtype))
        sums.add(side, settled, crossed)
    return out.flatten(0, 1)


def _multiply_into(products_AB: Tensor, a_NU: Tensor, b_NU: Tensor) -> None:
    """products += a^T b with fp32 sums; no transpose is copied."""
    if a_NU.dtype == torch.float32 and min(products_AB.shape) < NARROW:
        products_AB += a_NU.T @ b_NU
    elif a_NU.dtype == torch.float32:
        products_AB.addmm_(a_NU.T, b_NU)
    else:
        torch.addmm(products_AB, a_NU.T, b_NU, out_dtype=torch.float32, out=products_AB)
