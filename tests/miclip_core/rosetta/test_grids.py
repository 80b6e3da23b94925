"""On which grid a pair is compared, and which grids cannot be."""

from __future__ import annotations

import pytest

from miclip_core.rosetta.grids import common_grid, meeting_grid
from miclip_core.rosetta.memory import products_bytes
from schemas.errors import BadGrid


def test_the_larger_side_per_axis_is_the_common_grid_of_a_pair() -> None:
    assert common_grid((7, 7), (14, 14), "pairwise_max") == (14, 14)
    assert common_grid((7, 14), (14, 7), "pairwise_max") == (14, 14)


def test_a_canonical_grid_is_that_of_every_pair() -> None:
    assert common_grid((7, 7), (14, 14), (8, 8)) == (8, 8)


def test_products_are_taken_at_the_smallest_side_per_axis() -> None:
    assert meeting_grid((7, 14), (14, 7), (14, 14)) == (7, 7)
    assert meeting_grid((7, 7), (14, 14), (4, 20)) == (4, 7)


@pytest.mark.parametrize(
    "a, b, rule", [((1, 1), (7, 7), "pairwise_max"), ((7, 7), (7, 7), (0, 7)), ((7, 7), (7, 7), (1, 1))]
)
def test_a_grid_without_positions_to_compare_is_refused(a: tuple[int, int], b: tuple[int, int], rule: object) -> None:
    with pytest.raises(BadGrid, match=r"grid (1x1|0x7)"):
        common_grid(a, b, rule)  # type: ignore[arg-type]


def test_products_take_four_bytes_for_a_pair_until_sums_are_put_aside() -> None:
    assert products_bytes(1000, 2000, 100) == 8_000_000 + 48_000
    assert products_bytes(1000, 2000, 100_000) == 16_000_000 + 48_000
