"""Network Dissection in shards (Bau et al. 2017): the threshold of each unit in passes over all positions, then overlaps with masks.

Between the rounds go counts: of activations by their leading bits, 16 KiB a unit while a shard is counted and 8 bytes for
each that is not 0 as it is stored, then of pixels. All are integers, so any cut into shards gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.describe.lists import list_parts, start_lists
from jobs.describe.pooled import unit_blocks
from jobs.describe.segmenters import open_segmenter
from jobs.describe.task import Task
from jobs.describe.units import UnitRows
from jobs.protocol import Artifact, Part
from miclip_core.concepts.top import NONE, TopScores
from miclip_core.dissect.netdissect import DETECTOR, Overlaps, UnitMaps, codes_above, maps_above
from miclip_core.dissect.thresholds import SearchState, Thresholds, ThresholdSearch
from miclip_core.sae.codes import Codes

BLOCK_COUNTS = 1 << 23
"""Counts that are held at once when shards are joined: 64 MB, of 4,096 units while thresholds are searched."""
MAP_NUMBERS = 1 << 24
"""Numbers of maps that are held at once when overlaps are counted: 64 MB."""
STATE, CONCEPTS = "state", "concepts"


def collector(task: Task) -> Counter | Dissector:
    """For the images of a shard: counts of activations in rounds `pass1` and on, of pixels in round `overlaps`."""
    return Dissector(task) if task.round_name == "overlaps" else Counter(task)


def finish(task: Task) -> Iterator[Part | Artifact]:
    """Rounds `close1` and on: what is known of the thresholds now; round `score`: lists, their overlaps, the summary."""
    if task.round_name == "score":
        yield from _score(task)
    else:
        yield _close(task)


# -------------------------------------------------------------- thresholds


class Counter:
    """How many activations of each unit have which bits; 16 KiB a unit."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._search = _search(task, _begun(task))

    def add(self, rows: UnitRows) -> None:
        """Count the patches of these images."""
        self._search.add(rows.patches())

    def results(self) -> Iterator[Artifact]:
        """The counts of each block of units."""
        place, count = (t.cpu() for t in self._search.counts())
        bins, n = self._search.bins, torch.tensor(self._search.n)
        for block, units in enumerate(unit_blocks(self._task.units, bins, BLOCK_COUNTS)):
            first, stop = torch.searchsorted(place, torch.tensor([units.start * bins, units.stop * bins])).tolist()
            here = place[first:stop] - units.start * bins
            counts = {"place": here.int(), "count": count[first:stop].int(), "n": n}
            yield self._task.pack(_name("counts", block), counts)


def _close(task: Task) -> Artifact:
    """Join the counts of all shards, one block of units after another."""
    begun, counted = _begun(task), task.round_name.replace("close", "pass")
    states: list[SearchState] = []
    for block, units in enumerate(unit_blocks(task.units, _search(task, begun[:0]).bins, BLOCK_COUNTS)):
        search = _search(task, begun[units])
        for found in task.partials(counted, _name("counts", block)):
            place, count = (torch.from_numpy(found[name]).long().to(task.device) for name in ("place", "count"))
            search.add_counts(place, count, int(found["n"]))
        search.close()
        states.append(search.state())
    prefix, above = torch.cat([s.prefix for s in states]), torch.cat([s.above for s in states])
    numbers = {"passes": torch.tensor(states[0].passes), "n": torch.tensor(states[0].n)}
    return task.pack(STATE, {"prefix": prefix, "above": above, **numbers})


def _begun(task: Task) -> SearchState:
    """What the passes before this round found."""
    names = [r.name for r in task.plan.rounds]
    closed = [name for name in names[: names.index(task.round_name)] if name.startswith("close")]
    if not closed:
        return ThresholdSearch(task.units, device=task.device).state()
    (found,) = task.partials(closed[-1], STATE)
    prefix, above = (torch.from_numpy(found[name]).to(task.device) for name in ("prefix", "above"))
    return SearchState(prefix, above, int(found["passes"]), int(found["n"]))


def _search(task: Task, state: SearchState) -> ThresholdSearch:
    return ThresholdSearch.resume(state, float(task.params["on_share"]), half=bool(task.plan.effort["half"]))


def _thresholds(task: Task) -> Thresholds:
    return _search(task, _begun(task)).thresholds()


# -------------------------------------------------------------- overlaps


class Dissector:
    """Pixels that units and concepts share: one integer per unit and concept, and the maps of some images."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._thresholds, self._source = _thresholds(task), open_segmenter(task)
        self._overlaps = Overlaps(task.units, len(self._source.known), task.device)
        self._images = 0
        self._at_once = max(1, MAP_NUMBERS // (task.units * task.grid[0] * task.grid[1]))

    def add(self, rows: UnitRows) -> None:
        """Count the images of which something is known."""
        found = self._source.find(rows.image_index.tolist())
        for start in range(0, len(found.places), self._at_once):
            places = found.places[start : start + self._at_once]
            masks = found.packed.cut(start, start + len(places)).to(self._task.device)
            values = rows.patches() if len(places) == len(rows.images) else rows.patches(places)
            self._overlaps.add(self._maps(values), masks)
            self._images += len(places)

    def _maps(self, values: Tensor | Codes) -> UnitMaps:
        if isinstance(values, Codes):
            return codes_above(values, self._task.grid, self._thresholds)
        maps_BIJU = values.unflatten(0, (-1, *self._task.grid))
        return maps_above(maps_BIJU.permute(0, 3, 1, 2), self._thresholds)

    def results(self) -> Iterator[Artifact]:
        """The counts of each block of units, and those of the concepts."""
        known = self._source.known
        for block, units in enumerate(unit_blocks(self._task.units, len(known), BLOCK_COUNTS)):
            flat = self._overlaps.shared_UM[units].flatten()
            place = flat.nonzero()[:, 0]
            counts = {"place": place, "count": flat[place], "unit": self._overlaps.unit_U[units]}
            yield self._task.pack(_name("overlaps", block), counts)
        pixels = {"known": known, "pixels": self._overlaps.concept_M, "images": torch.tensor(self._images)}
        yield self._task.pack(CONCEPTS, pixels)


class _Joined:
    """The overlaps of all shards, one block of units at a time."""

    def __init__(self, task: Task) -> None:
        self._task = task
        parts = list(task.partials("overlaps", CONCEPTS))
        self.known = torch.from_numpy(parts[0]["known"])
        self.images = sum(int(part["images"]) for part in parts)
        self._pixels_M = torch.from_numpy(np.sum([part["pixels"] for part in parts], 0))

    def blocks(self) -> Iterator[tuple[slice, Overlaps]]:
        """Units, and their overlaps with the concepts that are known."""
        for block, units in enumerate(unit_blocks(self._task.units, len(self.known), BLOCK_COUNTS)):
            overlaps = Overlaps(units.stop - units.start, len(self.known))
            overlaps.concept_M += self._pixels_M
            for found in self._task.partials("overlaps", _name("overlaps", block)):
                place, count, unit = (torch.from_numpy(found[name]) for name in ("place", "count", "unit"))
                overlaps.shared_UM.view(-1).index_add_(0, place, count)
                overlaps.unit_U += unit
            yield units, overlaps


def _score(task: Task) -> Iterator[Part]:
    """A unit and a concept that share no pixel have no score, nor have units that are nowhere above their threshold."""
    thresholds, joined = _thresholds(task), _Joined(task)
    dead_U = thresholds.above.cpu() == 0
    top = start_lists(task, dead_U)
    for units, overlaps in joined.blocks():
        iou_UM = overlaps.iou(~dead_U[units])
        iou_UM[overlaps.shared_UM == 0] = torch.nan
        top.add_at(
            torch.arange(units.start, units.stop).to(task.device), joined.known.to(task.device), iou_UM.to(task.device)
        )
    yield from list_parts(task, top, dead_U, joined.images)
    pairs_Q2 = _listed(top)
    for units, overlaps in joined.blocks():
        here = pairs_Q2[(pairs_Q2[:, 0] >= units.start) & (pairs_Q2[:, 0] < units.stop)]
        if len(here):
            yield from _iou_parts(task, here, overlaps, units.start, joined.known, thresholds)


def _listed(top: TopScores) -> Tensor:
    """Pairs (unit, concept) that are in a list of either, int64 [Q,2], sorted."""
    pairs = []
    for lists, flip in ((top.concepts_of_unit, False), (top.units_of_concept, True)):
        row, rank = (lists.ids_NK != NONE).nonzero(as_tuple=True)
        pair = torch.stack((row, lists.ids_NK[row, rank]), 1)
        pairs.append(pair.flip(1) if flip else pair)
    return torch.cat(pairs).unique(dim=0).cpu()


def _iou_parts(
    task: Task, pairs_Q2: Tensor, overlaps: Overlaps, first: int, known: Tensor, thresholds: Thresholds
) -> Iterator[Part]:
    unit, concept = pairs_Q2.unbind(1)
    at = unit - first, torch.searchsorted(known, concept.contiguous())
    shared, union = overlaps.shared_UM[at], overlaps.union_UM[at]
    iou = shared.double() / union
    columns: dict[str, Any] = {
        "unit": unit.int().numpy(),
        "concept_id": concept.int().numpy(),
        "concept": [task.concepts[m] for m in concept.tolist()],
        "intersection": shared.numpy(),
        "union": union.numpy(),
        "iou": iou.numpy(),
        "is_detector": (iou > DETECTOR).numpy(),
        "threshold": thresholds.value.cpu()[unit].numpy(),
    }
    yield from task.part("unit_iou", columns)


def _name(what: str, block: int) -> str:
    return f"{what}-{block:05d}"
