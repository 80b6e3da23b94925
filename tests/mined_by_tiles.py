"""Two members of made-up maps, mined by tiles and rescored: what a job does over its shards, in one process."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from miclip_core.rosetta.accumulate import Products
from miclip_core.rosetta.crossing import Crossing
from miclip_core.rosetta.neighbours import Neighbours, look_up, pairs_of
from miclip_core.rosetta.rescore import Nearest, Rescorer, cut
from miclip_core.rosetta.standardise import TOLERANCES, Scale, standardised
from miclip_core.zoo.reducers import Moments

GRID, CHUNK = (4, 4), 10


@dataclass(frozen=True)
class MadeUp:
    """Unit u of member b is unit u * step of member a (mod units), behind noise of its own; drawn chunk by chunk."""

    units: int
    images: int
    step: int = 7

    def chunk(self, member: str, first: int) -> Tensor:
        """fp32 [CHUNK, P, units]: always the same for the same images."""
        shape = (min(CHUNK, self.images - first), GRID[0] * GRID[1], self.units)
        shared = torch.randn(shape, generator=torch.Generator().manual_seed(first))
        if member == "b":
            shared = shared[..., self.twins]
        own = torch.randn(shape, generator=torch.Generator().manual_seed(10_000 + first + (member == "b")))
        return own.mul_(0.7).add_(shared)

    @property
    def twins(self) -> Tensor:
        """int64 [units]: the unit of a that each of b is."""
        return torch.arange(self.units) * self.step % self.units


@dataclass(frozen=True)
class Mined:
    """The nearest of both directions, and seconds of each step."""

    of_a: Nearest
    of_b: Nearest
    seconds: dict[str, float]


def mine(maps: MadeUp, block: int, k: int = 5, margin: int = 8) -> Mined:
    """Moments, tiles of block x block pairs, and the candidates again in fp64."""
    clock, seconds = time.perf_counter(), {}
    scales = {member: _scale(maps, member) for member in "ab"}
    seconds["moments"], clock = time.perf_counter() - clock, time.perf_counter()
    crossing, starts = Crossing(GRID, GRID, GRID), range(0, maps.images, CHUNK)
    of_a, of_b = (Neighbours(maps.units, k + margin) for _ in "ab")
    for i in range(0, maps.units, block):
        for j in range(0, maps.units, block):
            some = {"a": slice(i, i + block), "b": slice(j, j + block)}
            sizes = [len(range(maps.units)[units]) for units in some.values()]
            products = Products(crossing, *sizes)
            for first in starts:
                z = (standardised(maps.chunk(m, first)[..., some[m]], scales[m].take(some[m]))[0] for m in "ab")
                products.add(*z)
            r = products.correlations()
            of_a.merge(r, j, i)
            of_b.merge(r.T, i, j)
            del r, products
    seconds["tiles"], clock = time.perf_counter() - clock, time.perf_counter()
    pairs = pairs_of(of_a.ids, of_b.ids)
    rescorer = Rescorer(pairs, crossing, scales["a"], scales["b"])
    for first in starts:
        rescorer.add(maps.chunk("a", first), maps.chunk("b", first))
    r_exact, tolerance = rescorer.correlations(), TOLERANCES["fp32"]
    found = [
        cut(side.ids, look_up(pairs, r_exact, side.ids, flipped), k, side.values[:, -1], tolerance)
        for side, flipped in ((of_a, False), (of_b, True))
    ]
    seconds["rescoring"] = time.perf_counter() - clock
    return Mined(*found, seconds)


def _scale(maps: MadeUp, member: str) -> Scale:
    moments = Moments()
    for first in range(0, maps.images, CHUNK):
        moments.add(maps.chunk(member, first), np.arange(GRID[0] * GRID[1]), [])
    return Scale.of(moments)
