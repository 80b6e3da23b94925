"""Tiles of a pair: every pair of units in exactly one of them, none larger than a worker or a shard allows."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.activations import Forward
from jobs.between import bucket_units
from jobs.mine_rosetta.members import Member, MemberSite
from jobs.mine_rosetta.tiles import (
    ACCUMULATOR_SHARE,
    Tile,
    accumulator_bytes,
    images_at_once,
    pair_flops,
    plan_tiles,
)

FORWARD = Forward(model="demo:x", inputs={}, params={"rows": 100}, effort={"index": "i", "batch_size": 32})


def member(*sites: tuple[int, int]) -> Member:
    """Units and grid side of each site."""
    return Member(
        forward=FORWARD,
        sites=tuple(
            MemberSite(site=f"s.{i}@map", grid=(side, side), width=width, channels=width, depth=0.0)
            for i, (width, side) in enumerate(sites)
        ),
    )


def covered(shards: tuple[tuple[Tile, ...], ...], a: Member, b: Member) -> np.ndarray:
    """How often each pair of units is in a tile."""
    counts = np.zeros((a.width, b.width), int)
    for tile in (tile for shard in shards for tile in shard):
        x, y = a.groups[tile.group_a], b.groups[tile.group_b]
        low, high = bucket_units(tile.block_a, tile.blocks_a, x.width)
        left, right = bucket_units(tile.block_b, tile.blocks_b, y.width)
        counts[x.first + low : x.first + high, y.first + left : y.first + right] += 1
    return counts


@pytest.mark.parametrize(("budget", "shards"), [(1e9, 1), (1e9, 7), (2e5, 1), (3e4, 5), (200, 3)])
def test_every_pair_of_units_is_in_exactly_one_tile(budget: float, shards: int) -> None:
    a, b = member((100, 8)), member((17, 16), (33, 8), (64, 4))
    found = plan_tiles(a, b, "pairwise_max", budget, 0.0, shards)
    assert (covered(found, a, b) == 1).all()


def test_the_tiles_of_a_shard_fit_into_its_budget_together() -> None:
    a, b = member((3000, 4)), member((3000, 4))
    budget = 4e6
    found = plan_tiles(a, b, "pairwise_max", budget, 0.0, 1)
    assert accumulator_bytes(found, a, b) <= ACCUMULATOR_SHARE * budget
    assert len(found) >= 8 * 3000 * 3000 / (ACCUMULATOR_SHARE * budget)


def test_without_a_tight_budget_there_are_as_many_shards_as_asked_for_and_they_cost_alike() -> None:
    a, b = member((1200, 8)), member((1000, 8))
    found = plan_tiles(a, b, "pairwise_max", 1e9, 0.0, 4)
    assert 4 <= len(found) <= 5
    pairs = [sum((1200 / t.blocks_a) * (1000 / t.blocks_b) for t in shard) for shard in found]
    assert pairs == sorted(pairs, reverse=True) and pairs[0] <= 1.01 * 1200 * 1000 / 4


def test_a_shard_that_would_only_wait_for_maps_is_not_made() -> None:
    a, b = member((100, 8)), member((100, 8))
    whole = pair_flops(a, b, "pairwise_max")
    assert len(plan_tiles(a, b, "pairwise_max", 1e9, whole, 16)) == 1
    assert len(plan_tiles(a, b, "pairwise_max", 1e9, whole / 4, 16)) in (4, 5)


def test_products_are_at_the_coarsest_grid_that_is_exact() -> None:
    assert pair_flops(member((10, 14)), member((20, 14)), (7, 7)) == 2 * 10 * 20 * 49
    assert pair_flops(member((10, 4)), member((20, 14)), (7, 7)) == 2 * 10 * 20 * 16
    assert pair_flops(member((10, 14)), member((20, 7)), "pairwise_max") == 2 * 10 * 20 * 49


def test_images_at_once_are_halved_until_their_maps_fit() -> None:
    small, large = member((10, 2)), member((30_000, 4))
    assert images_at_once(small, small, 32, 2**31) == 32
    assert images_at_once(large, large, 128, 2**31) == 64
    assert images_at_once(large, large, 64, 1.0) == 1


def test_units_are_numbered_site_by_site_and_grid_by_grid() -> None:
    groups = member((5, 8), (7, 8), (3, 4)).groups
    assert [(g.grid, g.first, g.width) for g in groups] == [((8, 8), 0, 12), ((4, 4), 12, 3)]
