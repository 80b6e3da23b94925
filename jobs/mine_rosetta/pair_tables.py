"""The tables of a pair: its neighbours, buddies, counts beside those of chance, and the statistics of interpolated maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.mine_rosetta.pair import Pair
from jobs.mine_rosetta.pair_rescore import (
    Found,
    PairRescorer,
    both_ways,
    candidates,
    load_lists,
    load_null,
    load_rescored,
    within_reach,
)
from jobs.mine_rosetta.units import Units
from jobs.protocol import Inputs, Part
from jobs.rows import make_batch
from miclip_core.rosetta.buddies import Buddies, best_buddies, self_buddies
from miclip_core.rosetta.neighbours import look_up
from miclip_core.rosetta.rescore import Nearest, cut
from miclip_core.rosetta.standardise import TOLERANCES

NULL_DIGITS = 6
"""Of the r of the null, which is that of the fast pass."""


@dataclass(frozen=True, eq=False)
class Null:
    """What there is where images do not belong together.

    best: float64, the most that each compared unit of both members has above place. lists: the nearest of each unit. place: float64
    [N], what place explains of the candidate pairs [N,2], which are ascending.
    """

    best: np.ndarray
    lists: Found
    pairs: np.ndarray
    place: np.ndarray

    @property
    def q999(self) -> float:
        """What 999 of 1,000 units do not exceed: as the r of a buddy, it is the largest of all units of the other."""
        return float(np.quantile(self.best, 0.999))

    def of(self, found: Buddies) -> np.ndarray:
        """float64: what place explains of these buddies; each was found among the candidates."""
        keys = self.pairs[:, 0].astype(np.int64) << 32 | self.pairs[:, 1]
        return self.place[np.searchsorted(keys, found.a.astype(np.int64) << 32 | found.b)]


@dataclass(frozen=True, eq=False)
class Mined:
    """The nearest of either member in the other, exactly: `ba` is `ab` where a member is compared with itself."""

    pair: Pair
    ab: Nearest
    ba: Nearest
    null: Null
    rescored: PairRescorer

    @property
    def k(self) -> tuple[int, int]:
        """Neighbours that count on either side."""
        return self.pair.k

    def buddies(self, k_a: int, k_b: int) -> Buddies:
        """Those that are among the nearest of each other and alike enough."""
        found = _buddies(self.pair, (self.ab.ids, self.ab.r), (self.ba.ids, self.ba.r), k_a, k_b)
        return found.keep(_strength(self.pair, found.r) >= self._floor)

    def buddies_null(self, k_a: int, k_b: int) -> int:
        """How many there are by chance."""
        ab, ba = self.null.lists.ab, self.null.lists.ba
        found = best_buddies(ab.ids, ab.values, ba.ids, ba.values, k_a, k_b)
        counted = found.r >= self._floor
        return int((counted & (found.a < found.b) if self.pair.same else counted).sum())  # each two units once

    def below_null(self, found: Buddies) -> np.ndarray:
        """bool: buddies whose r is above what place explains by no more than chance gives the best two."""
        strength = [_strength(self.pair, r) for r in (found.r, self.null.of(found))]
        return strength[0] - np.maximum(strength[1], 0) <= self.null.q999

    @property
    def _floor(self) -> float:
        least = self.pair.params["min_r"]
        return -np.inf if least is None else float(least)


def mine(pair: Pair, inputs: Inputs) -> Mined:
    """What all tiles and all ranges of images come to."""
    found, chance = load_lists(pair, inputs, "true"), load_lists(pair, inputs, "null")
    pairs = candidates(pair, found)
    rescored = load_rescored(pair, pairs, inputs)
    known, r = both_ways(pair, pairs, rescored.correlations())
    (ids_ab, ids_ba), (k_a, k_b) = within_reach(pair, found), pair.k
    ab = _nearest(pair, ids_ab, found.ab.values, k_a, look_up(known, r, ids_ab))
    ba = ab if pair.same else _nearest(pair, ids_ba, found.ba.values, k_b, look_up(known, r, ids_ba, True))
    place, best = (np.round(r.astype(np.float64), NULL_DIGITS) for r in load_null(pair, inputs, pairs))
    null = Null(best, chance, pairs, place)
    return Mined(pair, ab, ba, null, rescored)


def _nearest(pair: Pair, ids: np.ndarray, fast: np.ndarray, k: int, r: np.ndarray) -> Nearest:
    return cut(ids, r, k, fast[:, -1], TOLERANCES[pair.params["precision"]], pair.absolute)


def _buddies(
    pair: Pair, ab: tuple[np.ndarray, np.ndarray], ba: tuple[np.ndarray, np.ndarray], k_a: int, k_b: int
) -> Buddies:
    return self_buddies(*ab, k_a) if pair.same else best_buddies(*ab, *ba, k_a, k_b)


def _strength(pair: Pair, r: np.ndarray) -> np.ndarray:
    """What min_r and the null are compared with."""
    return np.abs(r) if pair.absolute else r


# ---------------------------------------------------------------- tables


def pair_parts(pair: Pair, inputs: Inputs) -> Iterator[Part]:
    """All tables of a pair."""
    mined = mine(pair, inputs)
    sides = [(pair.a, pair.b, mined.ab)] if pair.same else [(pair.a, pair.b, mined.ab), (pair.b, pair.a, mined.ba)]
    for units, others, nearest in sides:
        yield from _part(pair, "rosetta_neighbours", _neighbours(units, others, nearest))
    yield from _part(pair, "rosetta_buddies", _buddy_rows(mined))
    for k_a, k_b in dict.fromkeys((mined.k, (1, 1))):
        yield from _part(pair, "rosetta_pairs", _counts(mined, k_a, k_b))
    yield from _moments(mined)


def _part(pair: Pair, table: str, columns: Mapping[str, Any]) -> Iterator[Part]:
    batch = make_batch(table, {"stage": pair.plan.digest, **columns})
    if batch.num_rows:
        yield Part(pair.plan.digest, table, batch)


def _neighbours(units: Units, others: Units, nearest: Nearest) -> dict[str, Any]:
    unit, rank = np.nonzero(nearest.ids >= 0)
    return {
        **units.columns(unit, "_a"),
        **others.columns(nearest.ids[unit, rank], "_b"),
        "rank": rank.astype(np.int32),
        "r": nearest.r[unit, rank],
        "is_exact": nearest.exact[unit],
    }


def _buddy_rows(mined: Mined) -> dict[str, Any]:
    pair, found = mined.pair, mined.buddies(*mined.k)
    return {
        **pair.a.columns(found.a, "_a"),
        **pair.b.columns(found.b, "_b"),
        "r": found.r,
        "rank_ab": found.rank_ab.astype(np.int32),
        "rank_ba": found.rank_ba.astype(np.int32),
        "place_r": mined.null.of(found),
        "null_q999": np.full(len(found), mined.null.q999),
        "is_below_null": mined.below_null(found),
    }


def _counts(mined: Mined, k_a: int, k_b: int) -> dict[str, Any]:
    pair, found = mined.pair, mined.buddies(k_a, k_b)
    compared = [pair.compared(units) for units in (pair.a, pair.b)]
    having = [np.union1d(found.a, found.b)] * 2 if pair.same else [np.unique(found.a), np.unique(found.b)]
    inexact = [int((~of.exact & alive).sum()) for of, alive in zip((mined.ab, mined.ba), compared, strict=True)]
    grid, best, strength = pair.params["grid"], mined.null.best, _strength(pair, found.r)
    return {
        **{
            f"{name}_{end}": value
            for end, units in zip("ab", (pair.a, pair.b))
            for name, value in _whose(units).items()
        },
        "k": np.array([max(k_a, k_b)], np.int32),
        "rule": grid if isinstance(grid, str) else f"{grid[0]}x{grid[1]}",
        "units_a": int(compared[0].sum()),
        "units_b": int(compared[1].sum()),
        "images": mined.rescored.images,
        "buddies": len(found),
        "buddies_null": mined.buddies_null(k_a, k_b),
        "above_null": int((~mined.below_null(found)).sum()),
        "share_a": len(having[0]) / int(compared[0].sum()),
        "share_b": len(having[1]) / int(compared[1].sum()),
        "r_p50": float(np.quantile(strength, 0.5)) if len(found) else None,
        "r_p90": float(np.quantile(strength, 0.9)) if len(found) else None,
        "null_p50": float(np.quantile(best, 0.5)),
        "null_q999": mined.null.q999,
        "null_max": float(best.max()),
        "inexact": inexact[0] if pair.same else sum(inexact),
        "shares_training": pair.params["shares_training"],
    }


def _whose(units: Units) -> dict[str, Any]:
    columns = units.columns(np.array([0]))
    return {name: columns[name] for name in ("model", "sae")}


def _moments(mined: Mined) -> Iterator[Part]:
    """Mean and sd of each unit of both on every grid where they were compared."""
    pair, done = mined.pair, set()
    for side, units in enumerate((pair.a, pair.b)[: 1 if pair.same else 2]):
        for place, rescorer in mined.rescored.parts.items():
            group, target = place[side], rescorer.crossing.target
            if (side, group, target) in done:
                continue
            done.add((side, group, target))
            yield from _part(
                pair, "rosetta_moments", _group_moments(units, group, target, rescorer.state(), "ab"[side])
            )


def _group_moments(
    units: Units, group: int, target: tuple[int, int], state: Mapping[str, np.ndarray], side: str
) -> dict[str, Any]:
    scale, n = units.scale(group), int(state["samples"])
    first, second = state[f"{side}_first"] / n, state[f"{side}_second"] / n
    here = units.span(group)
    numbers = np.arange(here.start, here.stop)
    return {
        **units.columns(numbers),
        "unit_kind": units.member.unit_kind,
        "target_h": np.full(len(numbers), target[0], np.int32),
        "target_w": np.full(len(numbers), target[1], np.int32),
        "n": np.full(len(numbers), n),
        "mean": scale.centre + scale.sd * first,
        "sd": scale.sd * np.sqrt(np.maximum(second - first**2, 0)),
    }
