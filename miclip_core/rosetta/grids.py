"""Grids of maps, and the grid that two maps are compared on; loads no torch, for whoever plans."""

from __future__ import annotations

from typing import Literal, TypeAlias

from schemas.errors import BadGrid

Grid: TypeAlias = tuple[int, int]
"""Rows and columns of a map; position i * columns + j is row i, column j."""

Rule: TypeAlias = Literal["pairwise_max"] | Grid
"""Where maps are compared: on the larger grid of each pair, or all on one canonical grid."""


def common_grid(a: Grid, b: Grid, rule: Rule) -> Grid:
    """The grid to which the maps of a pair are interpolated: the larger side per axis, or the canonical grid.

    Dravid et al. 2023, Rosetta Neurons, sec. 3.1, upsample the smaller map.

    Raises:
        BadGrid: a grid of one position, or a side below 1.
    """
    target = (max(a[0], b[0]), max(a[1], b[1])) if rule == "pairwise_max" else rule
    for grid in (a, b, target):
        check_grid(grid)
    return target


def meeting_grid(a: Grid, b: Grid, target: Grid) -> Grid:
    """The smallest side per axis of all that are involved: where products are taken, with the same sums as on `target`."""
    return min(a[0], b[0], target[0]), min(a[1], b[1], target[1])


def positions(grid: Grid) -> int:
    """Positions of a map."""
    return grid[0] * grid[1]


def check_grid(grid: Grid) -> None:
    """Refuse a grid on which nothing can be compared position by position.

    Raises:
        BadGrid: a grid of one position, or a side below 1.
    """
    if min(grid) < 1 or positions(grid) == 1:
        raise BadGrid(
            f"grid {grid[0]}x{grid[1]}; maps are compared position by position, which takes at least two positions; "
            "choose sites with a spatial map (@patch, @map) and a canonical grid larger than 1x1"
        )
