"""How a pair of members is cut into tiles of units and tiles are dealt out to shards: pure, and no result depends on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from jobs.mine_rosetta.members import Group, Member
from miclip_core.rosetta.grids import Rule, common_grid, meeting_grid, positions
from miclip_core.rosetta.memory import products_bytes, rescoring_bytes
from schemas.base import Frozen

ACCUMULATOR_SHARE = 0.55
"""Of a worker's budget for the products of its tiles; the rest is for maps on their way and lists of neighbours."""
BLOCK_SHARE = 0.3
"""Of it for the maps of one block of images."""

PLACE_BYTES = 12
"""Per unit and position: the sum over images in float64, and in float32 once it is looked at."""
LIST_BYTES = 40
"""Per unit and neighbour: lists of the pair and of the null, in two places while they are merged or packed."""
PAIR_BYTES = 100
"""Per unit and neighbour, while the pairs of units in lists are sorted and looked up."""


class Tile(Frozen):
    """Some units of one grid of a member against some of the other: block i of n of the units of a group, on either side."""

    group_a: int
    block_a: int
    blocks_a: int
    group_b: int
    block_b: int
    blocks_b: int


def pair_flops(a: Member, b: Member, rule: Rule) -> int:
    """FLOP of all products of one image, without the null."""
    return sum(_cost(x, y, rule) for x in a.groups for y in b.groups)


def _cost(a: Group, b: Group, rule: Rule) -> int:
    return 2 * a.width * b.width * _positions(a, b, rule)


def _positions(a: Group, b: Group, rule: Rule) -> int:
    """Positions at which the product of two maps is computed: interpolation is linear, so the coarsest grid will do."""
    return positions(meeting_grid(a.grid, b.grid, common_grid(a.grid, b.grid, rule)))


def numbers_at_once(a: Member, b: Member) -> int:
    """Numbers of float32 that are there at most for each image of a block.

    While the maps of the second member come in (a second time for the null), those of the first wait, standardised. What
    comes in is there twice, as a model gives it and side by side or standardised, and once more inside the model.
    """
    coming = [(2 if member.cached else 3) * member.map_numbers for member in (a, b)]
    return max(coming[0], a.map_numbers + coming[1])


def images_at_once(a: Member, b: Member, batch_size: int, budget_bytes: float) -> int:
    """Images of a block: as many as a forward pass takes, halved until their maps fit."""
    return _halved(batch_size, numbers_at_once(a, b), budget_bytes)


def numbers_alone(member: Member) -> int:
    """Numbers of float32 that are there at most for each image, where maps of members are used as they come in."""
    return 3 * member.map_numbers


def images_together(members: Sequence[Member], batch_size: int, budget_bytes: float) -> int:
    """Images of a block of which the members of one model have their maps together."""
    return _halved(batch_size, sum(map(numbers_alone, members)), budget_bytes)


def _halved(images: int, numbers: int, budget_bytes: float) -> int:
    while images > 1 and images * 4 * numbers > BLOCK_SHARE * budget_bytes:
        images //= 2
    return images


def plan_tiles(
    a: Member, b: Member, rule: Rule, budget_bytes: float, least_flops: float, shards: int, chunks: int = 1
) -> tuple[tuple[Tile, ...], ...]:
    """The tiles of each shard, costliest shard first; chunks: blocks of images that are added.

    Each shard sees every image, so its tiles fit into the budget together; there are about `shards` of them, fewer where
    one would compute less than least_flops per image and so only wait for maps.
    """
    room = ACCUMULATOR_SHARE * budget_bytes
    most = max(pair_flops(a, b, rule) / shards, least_flops)
    costed = sorted(_tiles(a, b, rule, room, most, chunks), key=lambda found: -found[1])
    cheapest, smallest = min(cost for _, cost, _ in costed), min(size for _, _, size in costed)
    bins: list[_Bin] = []
    open_bins: list[_Bin] = []  # those that would take at least the least tile
    for tile, cost, size in costed:
        found = next((b for b in open_bins if b.flops + cost <= most * 1.001 and b.held + size <= room), None)
        if found is None:
            found = _Bin()
            bins.append(found)
            open_bins.append(found)
        found.add(tile, cost, size)
        if found.flops + cheapest > most * 1.001 or found.held + smallest > room:
            open_bins.remove(found)
    return tuple(tuple(found.tiles) for found in sorted(bins, key=lambda found: -found.flops))


@dataclass(eq=False)
class _Bin:
    """The tiles of one shard, with their FLOP per image and bytes."""

    tiles: list[Tile] = field(default_factory=list)
    flops: float = 0.0
    held: float = 0.0

    def add(self, tile: Tile, flops: float, size: float) -> None:
        self.tiles.append(tile)
        self.flops += flops
        self.held += size


def _tiles(
    a: Member, b: Member, rule: Rule, room: float, most: float, chunks: int
) -> Iterator[tuple[Tile, float, float]]:
    """Every tile with its FLOP per image and its bytes: about square, none too large for a worker or a shard."""
    for i, x in enumerate(a.groups):
        for j, y in enumerate(b.groups):
            most_pairs = most / (2 * _positions(x, y, rule))
            n, m = _cut(x.width, y.width, partial(_fits, most_pairs=most_pairs, room=room, chunks=chunks))
            cost, size = _cost(x, y, rule) / (n * m), _bytes(math.ceil(x.width / n), math.ceil(y.width / m), chunks)
            for p in range(n):
                for q in range(m):
                    tile = Tile(group_a=i, block_a=p, blocks_a=n, group_b=j, block_b=q, blocks_b=m)
                    yield tile, cost, size


def _fits(rows: int, columns: int, most_pairs: float, room: float, chunks: int) -> bool:
    return rows * columns <= most_pairs and _bytes(rows, columns, chunks) <= room


def _cut(rows: int, columns: int, fits: Callable[[int, int], bool]) -> tuple[int, int]:
    """Into how many blocks either side is cut so that every tile fits; the longer block is cut first."""
    n = m = 1
    while not fits(math.ceil(rows / n), math.ceil(columns / m)) and (n < rows or m < columns):
        if m >= columns or (n < rows and rows / n >= columns / m):
            n += 1
        else:
            m += 1
    return n, m


def accumulator_bytes(shards: Sequence[Sequence[Tile]], a: Member, b: Member, chunks: int = 1) -> int:
    """The most that the products of any shard take; chunks: blocks of images that are added."""
    return max((sum(_tile_bytes(tile, a, b, chunks) for tile in tiles) for tiles in shards), default=0)


def _tile_bytes(tile: Tile, a: Member, b: Member, chunks: int) -> int:
    x, y = a.groups[tile.group_a], b.groups[tile.group_b]
    return _bytes(math.ceil(x.width / tile.blocks_a), math.ceil(y.width / tile.blocks_b), chunks)


def _bytes(rows: int, columns: int, chunks: int) -> int:
    """Of a tile: its products where images belong together, and where they are shifted."""
    return 2 * products_bytes(rows, columns, chunks)


def tiling_bytes(shards: Sequence[Sequence[Tile]], a: Member, b: Member, images: int, neighbours: int) -> int:
    """What a worker holds at most while tiles are worked off: products, sums by place, maps of a block of images, and lists."""
    chunks = -(-a.forward.rows // images) + 1
    lists = LIST_BYTES * (a.width + b.width) * neighbours
    held = accumulator_bytes(shards, a, b, chunks) + _place_bytes(shards, a, b)
    return held + max(4 * images * numbers_at_once(a, b), 2 * lists)


def _place_bytes(shards: Sequence[Sequence[Tile]], a: Member, b: Member) -> int:
    """Of the mean maps of the units of any shard, on the coarser grid of the two at most."""
    return max((sum(_place_numbers(tile, a, b) for tile in tiles) for tiles in shards), default=0) * PLACE_BYTES


def _place_numbers(tile: Tile, a: Member, b: Member) -> int:
    x, y = a.groups[tile.group_a], b.groups[tile.group_b]
    units = math.ceil(x.width / tile.blocks_a) + math.ceil(y.width / tile.blocks_b)
    return min(x.positions, y.positions) * units


def whole_bytes(a: Member, b: Member, batch_size: int, neighbours: int) -> int:
    """What it would hold if nothing were cut."""
    groups = [(i, j) for i in range(len(a.groups)) for j in range(len(b.groups))]
    tiles = [Tile(group_a=i, block_a=0, blocks_a=1, group_b=j, block_b=0, blocks_b=1) for i, j in groups]
    return tiling_bytes([tiles], a, b, batch_size, neighbours)


def again_bytes(a: Member, b: Member, images: int, neighbours: int) -> int:
    """What it holds at most while candidates are computed again: lists, their pairs, and maps of a block of images."""
    listed = (a.width + b.width) * neighbours
    numbers = (max(site.width * site.grid[0] * site.grid[1] for site in member.sites) for member in (a, b))
    return (LIST_BYTES + PAIR_BYTES) * listed + rescoring_bytes(listed, *numbers) + 4 * images * numbers_at_once(a, b)
