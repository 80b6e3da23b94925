"""The tiles of one shard: products over all images, where they belong together and where they do not, and who is nearest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from jobs.between import bucket_units, pack
from jobs.mine_rosetta.maps import MapReader, Maps
from jobs.mine_rosetta.pair import Pair, ranges_of, select
from jobs.mine_rosetta.plan import TILES, tiles_of
from jobs.mine_rosetta.tiles import Tile
from jobs.mine_rosetta.units import Units
from jobs.protocol import Artifact, Inputs
from miclip_core.rosetta.accumulate import Products
from miclip_core.rosetta.chance import Place, ShiftedProducts, above_place
from miclip_core.rosetta.neighbours import Neighbours
from miclip_core.rosetta.standardise import Precision, standardised
from miclip_core.rosetta.turns import quarter_turns, turned
from schemas.errors import BadMaps

LISTED = 4096
"""Units whose lists take a tile in at a time, for what they are chosen with takes memory."""
PLACED = 512
"""Units whose correlations are set against place at a time."""
Z = list[Tensor | None]
"""Standardised maps [B, P, U] of each group of a member; None where no tile needs it."""


class TileWork:
    """One tile: the sums of products of some units of one group of a member with some of the other."""

    def __init__(self, pair: Pair, tile: Tile, device: str) -> None:
        self.tile = tile
        sizes = pair.a.widths[tile.group_a], pair.b.widths[tile.group_b]
        self.rows = slice(*bucket_units(tile.block_a, tile.blocks_a, sizes[0]))
        self.columns = slice(*bucket_units(tile.block_b, tile.blocks_b, sizes[1]))
        crossing = pair.crossings[tile.group_a, tile.group_b]
        shape = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        self.true, self.null = Products(crossing, *shape, device), ShiftedProducts(crossing, *shape, device)
        self.first_a = pair.a.firsts[tile.group_a] + self.rows.start
        self.first_b = pair.b.firsts[tile.group_b] + self.columns.start

    def add(self, products: Products, a: Z, b: Z, places_a: np.ndarray, places_b: np.ndarray) -> None:
        """Take the images at these places of either side."""
        z_a, z_b = a[self.tile.group_a], b[self.tile.group_b]
        assert z_a is not None and z_b is not None
        products.add(select(z_a, places_a)[..., self.rows], select(z_b, places_b)[..., self.columns])


class Lists:
    """The nearest of every unit of both members, in one direction each; where r is the same both ways the first says it all."""

    def __init__(self, pair: Pair, device: str, both: bool) -> None:
        (k_a, k_b), margin = pair.k, int(pair.params["margin"])
        self.ab = Neighbours(len(pair.a), k_a + margin, device)
        self.ba = None if not both else Neighbours(len(pair.b), k_b + margin, device)

    def merge(self, r_AB: Tensor, first_a: int, first_b: int) -> None:
        """Take the correlations of a tile."""
        for start in range(0, r_AB.shape[0], LISTED):
            self.ab.merge(r_AB[start : start + LISTED], first_b, first_a + start)
        for start in range(0, r_AB.shape[1] if self.ba is not None else 0, LISTED):
            assert self.ba is not None
            self.ba.merge(r_AB[:, start : start + LISTED].T, first_a, first_b + start)

    @property
    def sides(self) -> dict[str, Neighbours]:
        """The lists by direction."""
        return {"ab": self.ab, **({"ba": self.ba} if self.ba is not None else {})}

    def state(self, name: str) -> dict[str, np.ndarray]:
        """Arrays that `load_lists` reads."""
        return {f"{name}.{side}.{key}": array for side, of in self.sides.items() for key, array in of.state().items()}


def run_tiles(pair: Pair, shard: int, reader: MapReader, inputs: Inputs, device: str) -> Iterator[Artifact]:
    """Stream all images once and list the nearest units that the tiles of a shard have.

    Raises:
        BadMaps: there is no image that both members can use, or that the null can pair.
    """
    tiles = [TileWork(pair, tile, device) for tile in tiles_of(pair.plan, shard)]
    _stream(pair, tiles, reader, inputs)
    # Of a member with itself image i of one unit meets another image of the other: the null is not the same both ways.
    true, null, best = Lists(pair, device, both=not pair.same), Lists(pair, device, both=True), Best(pair, device)
    places: list[tuple[TileWork, Place]] = []
    for tile in tiles:
        for lists, products in ((true, tile.true), (null, tile.null)):
            r_AB = products.correlations(pair.absolute)
            _mask(pair, tile, r_AB)
            lists.merge(r_AB, tile.first_a, tile.first_b)
        places.append((tile, tile.null.place()))
        best.merge(r_AB, *places[-1], pair.absolute)
    found = {f"place.{side}": _looked_up(of.ids, places, side) for side, of in true.sides.items()}
    yield pack(pair.plan.digest, TILES, {**true.state("true"), **null.state("null"), **found, **best.state})


class Best:
    """The most that each unit has above place with any unit of the other member, where images do not belong together.

    float32 [U] of either member; minus infinity for units that are not compared.
    """

    def __init__(self, pair: Pair, device: str) -> None:
        self._a, self._b = (torch.full((len(units),), -torch.inf, device=device) for units in (pair.a, pair.b))

    def merge(self, r_AB: Tensor, tile: TileWork, place: Place, absolute: bool) -> None:
        """Take the correlations of a tile, some rows at a time."""
        of_b = self._b[tile.first_b : tile.first_b + r_AB.shape[1]]
        for start in range(0, r_AB.shape[0], PLACED):
            rows = slice(start, min(start + PLACED, r_AB.shape[0]))
            by_place = place.of_rows(rows)
            left = above_place(r_AB[rows], by_place.abs_() if absolute else by_place)
            of_a = self._a[tile.first_a + rows.start : tile.first_a + rows.stop]
            of_a.copy_(torch.maximum(of_a, left.amax(1)))
            of_b.copy_(torch.maximum(of_b, left.amax(0)))

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Arrays of which the larger count where tiles are joined."""
        return {"best.a": self._a.cpu().numpy(), "best.b": self._b.cpu().numpy()}


def _looked_up(ids: np.ndarray, places: Sequence[tuple[TileWork, Place]], side: str) -> np.ndarray:
    """float32 [U, K']: what place explains of the listed pairs of units; NaN where a list has none."""
    found = np.full(ids.shape, np.nan, np.float32)
    for tile, place in places:
        spans = (tile.first_a, len(place.a_RP)), (tile.first_b, len(place.b_CP))
        (first, count), (first_other, others) = spans if side == "ab" else spans[::-1]
        here = ids[first : first + count]
        unit, at = np.nonzero((here >= first_other) & (here < first_other + others))
        two = (
            torch.from_numpy(which).to(place.a_RP.device)
            for which in (unit, (here[unit, at] - first_other).astype(np.int64))
        )
        rows, columns = two if side == "ab" else reversed(tuple(two))
        found[first + unit, at] = place.of_pairs(rows, columns).cpu().numpy()
    return found


def _stream(pair: Pair, tiles: Sequence[TileWork], reader: MapReader, inputs: Inputs) -> None:
    rows, shift = pair.a.member.forward.rows, pair.shift
    at_once = int(str(pair.plan.effort["images_at_once"]))
    ranges = ranges_of(0, rows, at_once, rows - shift)
    shifted = [((start + shift) % rows, (stop + shift - 1) % rows + 1) for start, stop in ranges]
    maps_a, maps_b, maps_null = (
        map(list.pop, reader.read(inputs, [units.member], some, at_once))  # keeps nothing of what it hands over
        for units, some in ((pair.a, ranges), (pair.b, [] if pair.same else ranges), (pair.b, shifted))
    )
    for _ in ranges:
        _add_block(pair, tiles, maps_a, maps_b, maps_null)
    if not tiles[0].true.sums_a.n or not tiles[0].null.sums_a.n:
        raise BadMaps(
            f"{pair.a.member.name} and {pair.b.member.name}: no image that both can use, or none to set against another for the "
            "null; their tables bad_inputs say why"
        )


def _add_block(
    pair: Pair, tiles: Sequence[TileWork], maps_a: Iterator[Maps], maps_b: Iterator[Maps], maps_null: Iterator[Maps]
) -> None:
    """Take one range of images of both, and then of the second those that the null sets against the first."""
    rows = pair.a.member.forward.rows
    index_a, z_a = _standardised(pair, pair.a, tiles, next(maps_a))
    index_b, z_b = (index_a, z_a) if pair.same else _standardised(pair, pair.b, tiles, next(maps_b))
    _, at_a, at_b = np.intersect1d(index_a, index_b, assume_unique=True, return_indices=True)
    for tile in tiles:
        tile.add(tile.true, z_a, z_b, at_a, at_b)
    del z_b
    index_b, z_b = _standardised(pair, pair.b, tiles, next(maps_null))
    if pair.params["chance"] == "shifted_rotated":
        _turn(pair.b, z_b, quarter_turns(index_b))
    _, at_a, at_b = np.intersect1d((index_a + pair.shift) % rows, index_b, assume_unique=True, return_indices=True)
    for tile in tiles:
        tile.add(tile.null, z_a, z_b, at_a, at_b)


def _standardised(pair: Pair, units: Units, tiles: Sequence[TileWork], maps: Maps) -> tuple[np.ndarray, Z]:
    """Rows of the index, and standardised maps of the groups that tiles need."""
    precision: Precision = pair.params["precision"]
    needed = {tile.tile.group_a for tile in tiles} if units is pair.a else set()
    needed |= {tile.tile.group_b for tile in tiles} if units is pair.b or pair.same else set()
    z = [
        standardised(rows, units.scale(i), precision)[0] if i in needed else None for i, rows in enumerate(maps.groups)
    ]
    return maps.index, z


def _turn(units: Units, z: Z, turns_B: np.ndarray) -> None:
    for i, group in enumerate(units.member.groups):
        if (maps_BPU := z[i]) is not None:
            z[i] = turned(maps_BPU, group.grid, turns_B)


def _mask(pair: Pair, tile: TileWork, r_AB: Tensor) -> None:
    """Minus infinity for units that are not compared, and for a unit with itself."""
    for units, first, axis in ((pair.a, tile.first_a, 0), (pair.b, tile.first_b, 1)):
        left_out = ~pair.compared(units)[first : first + r_AB.shape[axis]]
        chosen = torch.from_numpy(np.flatnonzero(left_out)).to(r_AB.device)
        r_AB.index_fill_(axis, chosen, -torch.inf)
    if pair.same:
        unit = np.arange(
            max(tile.first_a, tile.first_b), min(tile.first_a + r_AB.shape[0], tile.first_b + r_AB.shape[1])
        )
        r_AB[torch.from_numpy(unit - tile.first_a), torch.from_numpy(unit - tile.first_b)] = -torch.inf
