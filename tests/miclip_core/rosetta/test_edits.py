"""Edits of maps with one position lit, and of numbers that one can follow by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from miclip_core.rosetta.edits import can_edit, edited
from schemas.errors import BadGrid
from schemas.inversion import AMOUNTS, Edit, EditName

GRID = (4, 8)


def usual(name: EditName) -> Edit:
    return Edit(name=name, amount=AMOUNTS[name])


def one_hot(row: int, column: int, grid: tuple[int, int] = GRID) -> Tensor:
    """One image and two units: a map with one position lit, and the same three times as bright."""
    maps = torch.zeros(1, *grid, 2)
    maps[0, row, column] = torch.tensor([1.0, 3.0])
    return maps.flatten(1, 2)


def lit(rows: Tensor, grid: tuple[int, int] = GRID) -> list[tuple[int, int]]:
    """Positions that are not 0 in the first map; the second is three times it."""
    assert torch.equal(rows[..., 1], 3 * rows[..., 0])
    return [(int(i), int(j)) for i, j in rows[0, :, 0].unflatten(0, grid).nonzero()]


@pytest.mark.parametrize(
    ("name", "to"),
    [("shift_left", (2, 3)), ("shift_right", (2, 7)), ("shift_up", (1, 5)), ("shift_down", (3, 5))],
)
def test_a_shift_moves_a_quarter_of_the_side(name: EditName, to: tuple[int, int]) -> None:
    assert lit(edited(one_hot(2, 5), GRID, usual(name))) == [to]


def test_what_leaves_is_lost_and_zeros_come_in() -> None:
    assert lit(edited(one_hot(2, 1), GRID, usual("shift_left"))) == []
    ones = edited(torch.ones(1, 32, 1), GRID, usual("shift_right"))[0, :, 0].unflatten(0, GRID)
    assert ones[:, :2].sum() == 0 and (ones[:, 2:] == 1).all()


def test_a_shift_goes_to_the_nearest_position() -> None:
    assert lit(edited(one_hot(6, 6, (7, 7)), (7, 7), usual("shift_left")), (7, 7)) == [(6, 4)]  # 1.75 positions
    assert lit(edited(one_hot(0, 4, (5, 5)), (5, 5), usual("shift_left")), (5, 5)) == [(0, 3)]  # 1.25


def test_maps_of_three_positions_cannot_be_shifted_by_a_quarter() -> None:
    left, down = usual("shift_left"), usual("shift_down")
    assert not can_edit((3, 3), left) and can_edit((3, 4), left)
    assert not can_edit((3, 4), down) and can_edit((4, 3), down)
    assert not can_edit((8, 3), usual("copy_paste")) and can_edit((3, 8), usual("copy_paste"))
    assert can_edit((2, 2), usual("zoom")) and can_edit((2, 2), usual("remove"))
    with pytest.raises(BadGrid, match="grid of 3x3"):
        edited(torch.zeros(1, 9, 1), (3, 3), left)


def test_copy_and_paste_has_the_left_half_moved_left_beside_the_right_half_moved_right() -> None:
    assert lit(edited(one_hot(1, 4), GRID, usual("copy_paste"))) == [(1, 2), (1, 6)]  # in the middle: seen twice
    assert lit(edited(one_hot(1, 1), GRID, usual("copy_paste"))) == []  # moved out, and to the left half of the right


def test_zoom_is_the_central_crop_of_the_maps_enlarged() -> None:
    maps = torch.rand(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    crop = interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)[:, :, 2:6, 4:12]
    found = edited(maps.flatten(2).transpose(1, 2), GRID, usual("zoom"))
    torch.testing.assert_close(found.transpose(1, 2).unflatten(2, GRID), crop)


def test_zoom_of_an_odd_side_stays_central() -> None:
    """On 5 positions: 2 stays, its neighbours come from half way between, as 2 + (i - 2) / 2."""
    ramp = torch.arange(5.0).repeat_interleave(5).reshape(1, 25, 1)  # rows 0..4
    found = edited(ramp, (5, 5), usual("zoom"))[0, :, 0].unflatten(0, (5, 5))
    torch.testing.assert_close(found[:, 0], torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0]))
    spot = edited(one_hot(2, 2, (5, 5)), (5, 5), usual("zoom"))[0, :, 0].unflatten(0, (5, 5))
    torch.testing.assert_close(spot[2], torch.tensor([0.0, 0.5, 1.0, 0.5, 0.0]))
    torch.testing.assert_close(spot, spot.flip(0, 1))


def test_remove_levels_a_map_to_its_own_minimum_and_strengthen_raises_what_rises_above_it() -> None:
    rows = torch.tensor([[[-1.0, 5.0], [2.0, 5.0], [0.0, 7.0]]])
    assert edited(rows, (1, 3), usual("remove")).tolist() == [[[-1.0, 5.0]] * 3]
    assert edited(rows, (1, 3), usual("strengthen")).tolist() == [[[-1.0, 5.0], [5.0, 5.0], [1.0, 9.0]]]


def test_images_are_edited_each_on_its_own() -> None:
    both = torch.cat([one_hot(2, 5), one_hot(0, 3)])
    for name in AMOUNTS:
        alone = torch.cat([edited(one, GRID, usual(name)) for one in both.split(1)])
        assert torch.equal(edited(both, GRID, usual(name)), alone), name


@pytest.mark.parametrize(
    ("name", "amount", "said"),
    [
        ("zoom", 1.0, "magnifies"),
        ("shift_up", 1.0, "share of the side"),
        ("copy_paste", 0.0, "share of the side"),
        ("remove", 1.0, "leave the amount out"),
        ("strengthen", 0.5, "more than 1"),
    ],
)
def test_amounts_that_mean_nothing_are_refused(name: EditName, amount: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Edit(name=name, amount=amount)
