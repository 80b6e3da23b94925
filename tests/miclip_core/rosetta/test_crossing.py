"""Products and moments of interpolated maps, against the framework's interpolation of whole maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from miclip_core.rosetta.crossing import Crossing, interpolation
from miclip_core.rosetta.grids import Grid
from schemas.errors import BadGrid
from tests.interpolated_maps import GRIDS, interpolated, make_maps


@pytest.mark.parametrize("source, target", [(7, 14), (14, 7), (7, 56), (14, 16), (5, 5), (1, 3), (9, 4)])
def test_one_axis_is_interpolated_as_by_the_framework_and_rows_sum_to_one(source: int, target: int) -> None:
    e = interpolation(source, target)
    x = torch.randn(2, 3, source, dtype=torch.float64)
    assert torch.allclose(x @ e.T, interpolate(x, size=target, mode="linear", align_corners=False), atol=1e-14)
    assert torch.allclose(e.sum(1), torch.ones(target, dtype=torch.float64), atol=1e-14)


def test_both_axes_give_the_bilinear_interpolation_of_the_framework() -> None:
    x = torch.randn(7, 9, dtype=torch.float64)
    both = interpolation(7, 16) @ x @ interpolation(9, 5).T
    whole = interpolate(x[None, None], size=(16, 5), mode="bilinear", align_corners=False)[0, 0]
    assert torch.allclose(both, whole, atol=1e-14)


@pytest.mark.parametrize("a, b, target", GRIDS)
def test_products_of_moved_maps_are_those_of_interpolated_maps(a: Grid, b: Grid, target: Grid) -> None:
    x, y = (torch.randn(3, grid[0] * grid[1], units, dtype=torch.float64) for grid, units in ((a, 4), (b, 5)))
    crossing = Crossing(a, b, target)
    moved_a, moved_b = crossing.move_a(x), crossing.move_b(y)
    assert moved_a.shape[1] == moved_b.shape[1] == crossing.at[0] * crossing.at[1]
    products = (moved_a.flatten(0, 1).T @ moved_b.flatten(0, 1)).numpy()
    np.testing.assert_allclose(products, interpolated(x, a, target) @ interpolated(y, b, target).T, atol=1e-10)


@pytest.mark.parametrize("a, b, target", GRIDS)
def test_sums_and_sums_of_squares_are_those_of_interpolated_maps(a: Grid, b: Grid, target: Grid) -> None:
    for side, grid in zip(Crossing(a, b, target).sides, (a, b)):
        x = make_maps(3, grid, 4).double()
        whole = interpolated(x, grid, target)
        settled = side.settle(x)
        first, second = side.sums(settled, side.cross(settled))
        np.testing.assert_allclose(first.numpy(), whole.sum(1), rtol=1e-12)
        np.testing.assert_allclose(second.numpy(), (whole**2).sum(1), rtol=1e-12)


def test_maps_that_stay_are_not_copied() -> None:
    x = torch.randn(2, 49, 3)
    assert Crossing((7, 7), (14, 14), (14, 14)).move_a(x).data_ptr() == x.data_ptr()


def test_upsampled_maps_are_multiplied_at_the_smaller_grid() -> None:
    crossing = Crossing((14, 14), (28, 28), (28, 28))
    assert crossing.at == (14, 14)
    assert crossing.positions == 784


def test_a_single_position_is_no_map() -> None:
    with pytest.raises(BadGrid, match="1x1"):
        Crossing((1, 1), (7, 7), (7, 7))
