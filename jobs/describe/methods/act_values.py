"""Act-Values: units by their mean activation on the images of each concept (the baseline of MICLIP, section 4)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from jobs.describe.lists import list_parts, start_lists
from jobs.describe.pooled import unit_blocks
from jobs.describe.sizes import BLOCK_SUMS
from jobs.describe.task import Task
from jobs.describe.units import UnitRows
from jobs.protocol import Artifact, Part
from miclip_core.dissect.act_values import ActValues
from miclip_core.dissect.spread import Spread
from schemas.errors import BadLabels

SEEN = "seen"
"""low, high float32 [U] of all units; present int64 [P], which labelled concepts some image of the shard shows; count int64 [P]; images."""


class Collector:
    """Sums over the images of a shard, for each labelled concept that one of them shows: few, however many there are in all."""

    def __init__(self, task: Task) -> None:
        self._task = task
        shown = task.labels.of(np.arange(task.shard.start, task.shard.stop)).any(0)
        self._present = shown.nonzero()[:, 0]
        self._sums = ActValues(len(self._present))
        self._images = 0

    def add(self, rows: UnitRows) -> None:
        """The next images."""
        t_NU = rows.pooled(self._task.params["pool"])
        self._sums.add(t_NU, self._task.labels.of(rows.image_index)[:, self._present].to(t_NU.device))
        self._images += len(rows.images)

    def results(self) -> Iterator[Artifact]:
        """The sums of the shard, block by block of units; nothing if it has no image."""
        sums, spread = self._sums, self._sums.spread
        if sums.sum_MU is None or sums.count_M is None or spread.low_U is None or spread.high_U is None:
            return
        seen = {"low": spread.low_U, "high": spread.high_U, "present": self._present, "count": sums.count_M}
        yield self._task.pack(SEEN, {**seen, "images": torch.tensor(self._images)})
        for number, units in enumerate(_blocks(self._task)):
            yield self._task.pack(_name(number), {"sum": sums.sum_MU[:, units]})


collector = Collector


def finish(task: Task) -> Iterator[Part]:
    """The lists of both directions.

    Raises:
        BadSpec: tau above the number of living units. BadLabels: no image was seen.
    """
    seen = [{key: torch.from_numpy(a) for key, a in found.items()} for found in task.partials("map", SEEN)]
    if not seen:
        raise BadLabels(f"no image has activations at {task.params['site']}; all were set aside")
    low_U = torch.stack([shard["low"] for shard in seen]).amin(0)
    high_U = torch.stack([shard["high"] for shard in seen]).amax(0)
    count_M = torch.zeros(len(task.labels.concepts), dtype=torch.int64)
    for shard in seen:
        count_M[shard["present"]] += shard["count"]
    dead_U = Spread(low_U, high_U).silent
    lists = start_lists(task, dead_U)
    concepts_M = torch.from_numpy(task.labels.concepts).to(task.device)
    for number, units in enumerate(_blocks(task)):
        sum_MU = torch.zeros(len(count_M), units.stop - units.start, dtype=torch.float64)
        for shard, found in zip(seen, task.partials("map", _name(number)), strict=True):
            sum_MU[shard["present"]] += torch.from_numpy(found["sum"])
        block = ActValues(len(count_M), sum_MU, count_M, Spread(low_U[units], high_U[units]))
        numbers = torch.arange(units.start, units.stop, device=task.device)
        lists.add_at(numbers, concepts_M, block.scores().to(task.device))
    yield from list_parts(task, lists, dead_U, sum(int(shard["images"]) for shard in seen))


def _blocks(task: Task) -> list[slice]:
    return unit_blocks(task.units, len(task.labels.concepts), BLOCK_SUMS)


def _name(block: int) -> str:
    return f"sums-{block:05d}"
