"""How a pair of members is cut into tiles of units and tiles are dealt out to shards: pure, and no result depends on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from jobs.mine_rosetta.members import Group, Member
from schemas.base import Frozen

ACCUMULATOR_SHARE = 0.55
"""Of a worker's budget for the products of its tiles; the rest is for maps on their way and lists of neighbours."""
BLOCK_SHARE = 0.3
"""Of it for the maps of one block of images."""
MAPS_IN_BLOCK = 3
"""What a block holds per number of its maps: as they come, standardised, and moved to another grid."""
BYTES = 8
"""Per pair of units of a tile: its product where images belong together, and where they are shifted, in float32."""


class Tile(Frozen):
    """Some units of one grid of a member against some of the other: block i of n of the units of a group, on either side."""

    group_a: int
    block_a: int
    blocks_a: int
    group_b: int
    block_b: int
    blocks_b: int


Grid = tuple[int, int]
Rule = str | tuple[int, int]


def target_grid(a: Grid, b: Grid, rule: Rule) -> Grid:
    """Where two maps are compared: the finer grid along each axis, or one grid for all."""
    return (max(a[0], b[0]), max(a[1], b[1])) if isinstance(rule, str) else rule


def product_positions(a: Grid, b: Grid, rule: Rule) -> int:
    """Positions at which the product of two maps is computed: interpolation is linear, so the coarsest grid will do."""
    target = target_grid(a, b, rule)
    return min(a[0] * a[1], b[0] * b[1], target[0] * target[1])


def pair_flops(a: Member, b: Member, rule: Rule) -> int:
    """FLOP of all products of one image, without the null."""
    return sum(_cost(x, y, rule) for x in a.groups for y in b.groups)


def _cost(a: Group, b: Group, rule: Rule) -> int:
    return 2 * a.width * b.width * product_positions(a.grid, b.grid, rule)


def images_at_once(a: Member, b: Member, batch_size: int, budget_bytes: float) -> int:
    """Images of a block: as many as a forward pass takes, halved until their maps fit."""
    of_image = 4 * MAPS_IN_BLOCK * (a.map_numbers + 2 * b.map_numbers)  # of the second also those of the shifted images
    images = batch_size
    while images > 1 and images * of_image > BLOCK_SHARE * budget_bytes:
        images //= 2
    return images


def plan_tiles(
    a: Member, b: Member, rule: Rule, budget_bytes: float, least_flops: float, shards: int
) -> tuple[tuple[Tile, ...], ...]:
    """The tiles of each shard, costliest shard first.

    Each shard sees every image, so its tiles fit into the budget together; there are about `shards` of them, fewer where
    one would compute less than least_flops per image and so only wait for maps.
    """
    room = ACCUMULATOR_SHARE * budget_bytes
    most = max(pair_flops(a, b, rule) / shards, least_flops)
    costed = sorted(_tiles(a, b, rule, room, most), key=lambda found: -found[1])
    bins: list[tuple[list[Tile], float, float]] = []
    for tile, cost, size in costed:
        for i, (tiles, flops, held) in enumerate(bins):
            if flops + cost <= most * 1.001 and held + size <= room:
                bins[i] = ([*tiles, tile], flops + cost, held + size)
                break
        else:
            bins.append(([tile], cost, size))
    return tuple(tuple(tiles) for tiles, _, _ in sorted(bins, key=lambda found: -found[1]))


def _tiles(a: Member, b: Member, rule: Rule, room: float, most: float) -> Iterator[tuple[Tile, float, float]]:
    """Every tile with its FLOP per image and its bytes: about square, none too large for a worker or a shard."""
    for i, x in enumerate(a.groups):
        for j, y in enumerate(b.groups):
            area = min(room / BYTES, most / (2 * product_positions(x.grid, y.grid, rule)))
            n, m = _cut(x.width, y.width, area)
            cost, size = _cost(x, y, rule) / (n * m), BYTES * math.ceil(x.width / n) * math.ceil(y.width / m)
            for p in range(n):
                for q in range(m):
                    tile = Tile(group_a=i, block_a=p, blocks_a=n, group_b=j, block_b=q, blocks_b=m)
                    yield tile, cost, size


def _cut(rows: int, columns: int, area: float) -> tuple[int, int]:
    """Into how many blocks either side is cut so that no tile is larger; the longer block is halved first."""
    n = m = 1
    while math.ceil(rows / n) * math.ceil(columns / m) > max(1.0, area) and (n < rows or m < columns):
        if m >= columns or (n < rows and rows / n >= columns / m):
            n += 1
        else:
            m += 1
    return n, m


def accumulator_bytes(shards: Sequence[Sequence[Tile]], a: Member, b: Member) -> int:
    """The most that the products of any shard take."""
    return max((sum(_tile_bytes(tile, a, b) for tile in tiles) for tiles in shards), default=0)


def _tile_bytes(tile: Tile, a: Member, b: Member) -> int:
    x, y = a.groups[tile.group_a], b.groups[tile.group_b]
    return BYTES * math.ceil(x.width / tile.blocks_a) * math.ceil(y.width / tile.blocks_b)
