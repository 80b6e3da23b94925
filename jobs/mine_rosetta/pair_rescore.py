"""Candidates of a pair again in float64: sums over ranges of images, and what they come to together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from jobs.between import pack, unpack_all
from jobs.mine_rosetta.maps import MapReader, Maps
from jobs.mine_rosetta.pair import Pair, ranges_of, select
from jobs.mine_rosetta.plan import RESCORE, TILES
from jobs.protocol import Artifact, Inputs
from miclip_core.rosetta.neighbours import Neighbours, pairs_of
from miclip_core.rosetta.rescore import NONE, Rescorer
from miclip_core.rosetta.standardise import TOLERANCES
from miclip_core.zoo.reducers import State
from schemas.plans import Shard

Place = tuple[int, int]
"""Groups of the two members."""


@dataclass(frozen=True, eq=False)
class Found:
    """The nearest of all tiles together: `ba` is `ab` where r is the same both ways."""

    ab: Neighbours
    ba: Neighbours


def load_lists(pair: Pair, inputs: Inputs, name: str) -> Found:
    """The lists `true` or `null` of all tiles, merged."""
    merged: dict[str, Neighbours] = {}
    for state in unpack_all(inputs, pair.plan, 0, TILES):
        for side in [side for side in ("ab", "ba") if f"{name}.{side}.ids" in state]:
            of = Neighbours.from_state({key: state[f"{name}.{side}.{key}"] for key in ("ids", "values")})
            if side in merged:
                merged[side].merge_found(of)
            else:
                merged[side] = of
    return Found(merged["ab"], merged.get("ba", merged["ab"]))


def load_null(pair: Pair, inputs: Inputs, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 [N]: what place explains of these pairs of units, ascending; and the most that each unit that is compared has
    above place where images do not belong together."""
    by_place, best = np.full(len(pairs), np.nan), [np.full(len(units), -np.inf) for units in (pair.a, pair.b)]
    keys = pairs[:, 0].astype(np.int64) << 32 | pairs[:, 1]
    for state in unpack_all(inputs, pair.plan, 0, TILES):
        for side, most in zip("ab", best, strict=True):
            np.maximum(most, state[f"best.{side}"], out=most)
        for way in ("ab",) if pair.same else ("ab", "ba"):
            ids, of = state[f"true.{way}.ids"], state[f"place.{way}"]
            unit, at = np.nonzero(ids >= 0)
            two = unit.astype(np.int64), ids[unit, at].astype(np.int64)
            a, b = (np.minimum(*two), np.maximum(*two)) if pair.same else two if way == "ab" else two[::-1]
            asked = a << 32 | b
            there = np.isin(asked, keys)  # a longer list of other tiles may have pushed it out
            by_place[np.searchsorted(keys, asked[there])] = of[unit, at][there]
    together = np.concatenate(best)
    return by_place, together[together > -np.inf]


def within_reach(pair: Pair, found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Lists int32 [U, K'] of both directions, with -1 for what lies so far behind the k-th that the error of the fast pass
    cannot have put it there: it need not be computed again."""
    tolerance, ids = TOLERANCES[pair.params["precision"]], []
    for lists, k in zip((found.ab, found.ba), pair.k, strict=True):
        least = lists.values[:, k - 1 : k] - 2 * tolerance
        ids.append(np.where(lists.values >= least, lists.ids, NONE).astype(np.int32))
    return ids[0], ids[1]


def candidates(pair: Pair, found: Found) -> np.ndarray:
    """int32 [N, 2], ascending: the pairs of units in any list; of a member with itself the smaller unit comes first."""
    ab, ba = within_reach(pair, found)
    if not pair.same:
        return pairs_of(ab, ba)
    return np.unique(np.sort(pairs_of(ab), axis=1), axis=0)


def both_ways(pair: Pair, pairs: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs and their r such that lists find theirs: of a member with itself each pair also turned round."""
    if not pair.same:
        return pairs, r
    everything, twice = np.concatenate((pairs, pairs[:, ::-1])), np.concatenate((r, r))
    order = np.lexsort((everything[:, 1], everything[:, 0]))
    return everything[order], twice[order]


class PairRescorer:
    """The rescorers of all groups of two members; states of ranges of images merge."""

    def __init__(self, pair: Pair, pairs: np.ndarray, device: str = "cpu") -> None:
        self._pairs = pairs
        groups = [np.searchsorted(units.firsts, pairs[:, i], "right") - 1 for i, units in enumerate((pair.a, pair.b))]
        self._chosen: dict[Place, np.ndarray] = {}
        self.parts: dict[Place, Rescorer] = {}
        self.images = 0
        for place, crossing in pair.crossings.items():
            chosen = np.flatnonzero((groups[0] == place[0]) & (groups[1] == place[1]))
            firsts = np.array([pair.a.firsts[place[0]], pair.b.firsts[place[1]]], np.int32)
            scales = pair.a.scale(place[0]), pair.b.scale(place[1])
            self._chosen[place] = chosen
            self.parts[place] = Rescorer(pairs[chosen] - firsts, crossing, *scales, device)

    def add(self, a: Maps, b: Maps) -> None:
        """Take the images that both have of a range."""
        _, at_a, at_b = np.intersect1d(a.index, b.index, assume_unique=True, return_indices=True)
        self.images += len(at_a)
        for (i, j), part in self.parts.items():
            part.add(select(a.groups[i], at_a), select(b.groups[j], at_b))

    def correlations(self) -> np.ndarray:
        """r float64 [N]."""
        r = np.empty(len(self._pairs))
        for place, part in self.parts.items():
            r[self._chosen[place]] = part.correlations()
        return r

    def state(self) -> State:
        """Arrays that `merge` adds."""
        named = {f"{i}.{j}.{key}": array for (i, j), part in self.parts.items() for key, array in part.state().items()}
        return {"images": np.array(self.images), **named}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Join what another of the same pairs saw in other images."""
        self.images += int(state["images"])
        for (i, j), part in self.parts.items():
            prefix = f"{i}.{j}."
            part.merge({key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)})


def run_rescore(pair: Pair, shard: Shard, reader: MapReader, inputs: Inputs, device: str) -> Iterator[Artifact]:
    """Sums of the candidates over a range of images."""
    rescorer = PairRescorer(pair, candidates(pair, load_lists(pair, inputs, "true")), device)
    at_once = int(str(pair.plan.effort["images_at_once"]))
    ranges = ranges_of(shard.start, shard.stop, at_once)
    maps_a = map(list.pop, reader.read(inputs, [pair.a.member], ranges, at_once))
    maps_b = map(list.pop, reader.read(inputs, [pair.b.member], [] if pair.same else ranges, at_once))
    for _ in ranges:
        rescorer.add(a := next(maps_a), a if pair.same else next(maps_b))
        del a
    yield pack(pair.plan.digest, RESCORE, rescorer.state())


def load_rescored(pair: Pair, pairs: np.ndarray, inputs: Inputs) -> PairRescorer:
    """The sums of all ranges together."""
    rescorer = PairRescorer(pair, pairs)
    for state in unpack_all(inputs, pair.plan, 1, RESCORE):
        rescorer.merge(state)
    return rescorer
