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
from miclip_core.sae.kernels import sparse_decode


@lru_cache(maxsize=256)
def interpolation(source: int, target: int) -> Tensor:
    """E fp64 [target, source]: linear interpolation of one axis (align_corners=False, no antialias); rows sum to 1."""
    basis = torch.eye(source, dtype=torch.float64)[None]
    return interpolate(basis, size=target, mode="linear", align_corners=False)[0].T.contiguous()


@lru_cache(maxsize=256)
def _between(source: int, other: int, target: int) -> Tensor:
    """E_other^T E_source fp64 [other, source], both to `target`: plain interpolation where `other` is the target."""
    return interpolation(other, target).T @ interpolation(source, target)


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
        shrunk = self.grid[0] != self.settled[0], self.grid[1] != self.settled[1]
        return _mixed(rows_BPU, _Mix(self.grid, self.settled, self.target, shrunk))

    def cross(self, settled_BPU: Tensor) -> Tensor:
        """Settled rows as rows [B, P_at, U] that are multiplied with those of the other side."""
        return _mixed(settled_BPU, _Mix(self.settled, self.at, self.target, self.crosses))

    def move(self, rows_BPU: Tensor) -> Tensor:
        """Both steps: rows [B, P, U] to rows [B, P_at, U]."""
        return self.cross(self.settle(rows_BPU))

    def sums(self, settled_BPU: Tensor, crossed_BPU: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and sum of squares fp64 [U] of the interpolated maps, over images and positions, of rows in both forms.

        Sums over the images of one call run in the type of the settled rows.
        """
        weights_P = self._weights.to(settled_BPU.device, settled_BPU.dtype)
        first_U = torch.matmul(weights_P, crossed_BPU.to(settled_BPU.dtype)).sum(0).double()
        if self.settled == self.target:
            return first_U, settled_BPU.square().sum((0, 1)).double()
        grown = self.settled[0] != self.target[0], self.settled[1] != self.target[1]
        smooth_BPU = _mixed(settled_BPU, _Mix(self.settled, self.settled, self.target, grown))
        return first_U, smooth_BPU.mul_(settled_BPU).sum((0, 1)).double()

    @cached_property
    def _weights(self) -> Tensor:
        """fp64 [P_at]: how much the target takes of each position that is multiplied; 1 where the other side's
        interpolation is in the rows already, for what a position gives to all others sums to 1."""
        h, w = (
            torch.ones(self.at[i], dtype=torch.float64)
            if self.crosses[i]
            else interpolation(self.at[i], self.target[i]).sum(0)
            for i in (0, 1)
        )
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


@dataclass(frozen=True)
class _Mix:
    """A linear map of positions: E_new^T E_old (both to `target`) along the axes that are true, nothing along others."""

    old: Grid
    new: Grid
    target: Grid
    axes: tuple[bool, bool]


@lru_cache(maxsize=256)
def _taps(mix: _Mix, images: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Which old positions of all images each new one takes, how much of each, and where the next one's begin."""
    h, w = (
        _between(mix.old[i], mix.new[i], mix.target[i]) if mix.axes[i] else torch.eye(mix.old[i], dtype=torch.float64)
        for i in (0, 1)
    )
    (h_row, h_column), (w_row, w_column) = h.nonzero().T, w.nonzero().T
    rows = (h_row[:, None] * len(w) + w_row).flatten()
    columns = (h_column[:, None] * w.shape[1] + w_column).flatten()
    order = (rows * h.shape[1] * w.shape[1] + columns).argsort()
    shares = torch.outer(h[h_row, h_column], w[w_row, w_column]).flatten()[order]
    first = torch.arange(images)[:, None] * h.shape[1] * w.shape[1]
    counts = rows.bincount(minlength=len(h) * len(w)).repeat(images)
    ends = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return (columns[order] + first).flatten().to(device), shares.repeat(images).to(device, dtype), ends.to(device)


def _mixed(rows_BPU: Tensor, mix: _Mix) -> Tensor:
    """Rows [B, P_old, U] as rows [B, P_new, U]; a new position takes few old ones, so that all are read once.

    The same tensor where there is nothing to do.
    """
    if not any(mix.axes) or len(rows_BPU) == 0:
        return rows_BPU
    places, shares, ends = _taps(mix, len(rows_BPU), rows_BPU.dtype, rows_BPU.device)
    rows_NU = rows_BPU.flatten(0, 1).contiguous()
    return sparse_decode(places, shares, rows_NU, ends).unflatten(0, (len(rows_BPU), -1))
