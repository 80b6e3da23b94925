"""Sums over positions of products of interpolated maps, taken without interpolating them.

Bilinear interpolation is linear and separable: up(X) = E_h X E_w^T. So the sum over positions of up(X) up(Y) is that of
X (E_a^T E_b Y ...), an exact product at the smaller grid, and sums and sums of squares of up(X) come from X as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from miclip_core.rosetta.grids import Grid, check_grid, meeting_grid, positions


@lru_cache(maxsize=256)
def interpolation(source: int, target: int) -> Tensor:
    """E fp64 [target, source]: linear interpolation of one axis (align_corners=False, no antialias); rows sum to 1."""
    basis = torch.eye(source, dtype=torch.float64)[None]
    return interpolate(basis, size=target, mode="linear", align_corners=False)[0].T.contiguous()


@lru_cache(maxsize=1024)
def _between(source: int, other: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """E_other^T E_source [other, source], both to `target`: plain interpolation where `other` is the target."""
    return (interpolation(other, target).T @ interpolation(source, target)).to(device, dtype)


@dataclass(frozen=True)
class Side:
    """What happens to the maps of one side of a pair: rows [B, P, U] on `grid`, compared on `target`, multiplied `at`.

    crosses: per axis, whether the products need this side moved, rather than the other.
    """

    grid: Grid
    target: Grid
    at: Grid
    crosses: tuple[bool, bool]

    @property
    def settled(self) -> Grid:
        """The grid after `settle`."""
        return min(self.grid[0], self.target[0]), min(self.grid[1], self.target[1])

    @property
    def stays(self) -> bool:
        """Whether rows are multiplied as they are."""
        return self.grid == self.settled and not any(self.crosses)

    def settle(self, rows_BPU: Tensor) -> Tensor:
        """Interpolated along each axis on which the target is smaller; the same tensor where there is none."""
        return _along(rows_BPU, self.grid, self.settled, self.target)

    def cross(self, settled_BPU: Tensor) -> Tensor:
        """Settled rows as rows [B, P_at, U] that are multiplied with those of the other side."""
        axes = [0, 1]
        return _along(settled_BPU, self.settled, self.at, self.target, tuple(i for i in axes if self.crosses[i]))

    def move(self, rows_BPU: Tensor) -> Tensor:
        """Both steps: rows [B, P, U] to rows [B, P_at, U]."""
        return self.cross(self.settle(rows_BPU))

    def sums(self, settled_BPU: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and sum of squares fp64 [U] of the interpolated maps of settled rows, over images and positions.

        Sums over the images of one call run in the type of the rows.
        """
        if self.settled == self.target:
            return settled_BPU.sum((0, 1)).double(), settled_BPU.square().sum((0, 1)).double()
        first = self._weights.to(settled_BPU.device) @ settled_BPU.sum(0).double()
        grown = [i for i in (0, 1) if self.settled[i] != self.target[i]]
        smooth = _along(settled_BPU, self.settled, self.settled, self.target, tuple(grown))
        return first, smooth.mul_(settled_BPU).sum((0, 1)).double()

    @cached_property
    def _weights(self) -> Tensor:
        """fp64 [P]: how much the target takes of each settled position."""
        h, w = (interpolation(self.settled[i], self.target[i]).sum(0) for i in (0, 1))
        return torch.outer(h, w).flatten()


@dataclass(frozen=True)
class Crossing:
    """The products of the maps of two sides on grids `a` and `b`, both interpolated to `target`.

    For rows X and Y of the sides, `(move_a(X) * move_b(Y)).sum()` is the sum over the positions of the target of the
    products of the interpolated maps, exactly; it is taken at the smallest side of the three per axis (the adjoint of
    the interpolation), for a quarter of the products at 14x14 against 28x28.

    Raises:
        BadGrid: a grid of one position, or a side below 1.
    """

    a: Grid
    b: Grid
    target: Grid

    def __post_init__(self) -> None:
        for grid in (self.a, self.b, self.target):
            check_grid(grid)

    @property
    def at(self) -> Grid:
        """The grid of the products."""
        return meeting_grid(self.a, self.b, self.target)

    @property
    def positions(self) -> int:
        """Positions of the target: samples of one image."""
        return positions(self.target)

    @cached_property
    def sides(self) -> tuple[Side, Side]:
        """What happens to a and to b; of two equal smaller sides b carries both interpolations."""
        a, b = ([min(side, most) for side, most in zip(grid, self.target)] for grid in (self.a, self.b))
        crosses_a = a[0] > b[0], a[1] > b[1]
        crosses_b = tuple(a[i] < b[i] or a[i] == b[i] < self.target[i] for i in (0, 1))
        return (
            Side(self.a, self.target, self.at, crosses_a),
            Side(self.b, self.target, self.at, (crosses_b[0], crosses_b[1])),
        )

    def move_a(self, rows_BPU: Tensor) -> Tensor:
        """Rows [B, P_a, U] of side a as rows [B, P_at, U]; the same tensor where there is nothing to do."""
        return self.sides[0].move(rows_BPU)

    def move_b(self, rows_BPU: Tensor) -> Tensor:
        """The same for side b."""
        return self.sides[1].move(rows_BPU)


def _along(rows_BPU: Tensor, old: Grid, new: Grid, target: Grid, axes: tuple[int, ...] | None = None) -> Tensor:
    """Rows on grid `old` times E_new^T E_old along the axes given, by default those that change."""
    axes = tuple(i for i in (0, 1) if old[i] != new[i]) if axes is None else axes
    (h, w), (images, _, units) = old, rows_BPU.shape
    out = rows_BPU
    if 0 in axes:
        matrix = _between(h, new[0], target[0], out.dtype, out.device)
        out = torch.matmul(matrix, out.reshape(images, h, w * units))
        h = new[0]
    if 1 in axes:
        matrix = _between(w, new[1], target[1], out.dtype, out.device)
        out = torch.matmul(matrix, out.reshape(images * h, w, units))
        w = new[1]
    return out.reshape(images, h * w, units)
