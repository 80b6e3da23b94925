"""Act-Values: units by their mean activation on the images of each concept (the baseline of MICLIP, section 4)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from jobs.describe.lists import list_parts, start_lists
from jobs.describe.task import Task
from jobs.describe.units import UnitRows
from jobs.protocol import Artifact, Part
from miclip_core.dissect.act_values import ActValues
from miclip_core.dissect.spread import Spread
from schemas.errors import BadLabels

SUMS = "sums"
"""sum float64 [L,U] and count int64 [L] of the concepts that are values of labels; low, high float32 [U]; images."""


class Collector:
    """Sums per labelled concept over the images of a shard."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._sums = ActValues(len(task.labels.concepts))
        self._images = 0

    def add(self, rows: UnitRows) -> None:
        """The next images."""
        t_NU = rows.pooled(self._task.params["pool"])
        self._sums.add(t_NU, self._task.labels.of(rows.image_index).to(t_NU.device))
        self._images += len(rows.images)

    def results(self) -> Iterator[Artifact]:
        """The sums of the shard; nothing if it has no image."""
        sums, spread = self._sums, self._sums.spread
        if sums.sum_MU is None or sums.count_M is None or spread.low_U is None or spread.high_U is None:
            return
        arrays = {"sum": sums.sum_MU, "count": sums.count_M, "low": spread.low_U, "high": spread.high_U}
        yield self._task.pack(SUMS, {**arrays, "images": torch.tensor(self._images)})


collector = Collector


def finish(task: Task) -> Iterator[Part]:
    """The lists of both directions.

    Raises:
        BadSpec: tau above the number of living units. BadLabels: no image was seen.
    """
    total, images = ActValues(len(task.labels.concepts)), 0
    for found in task.partials("map", SUMS):
        tensors = {name: torch.from_numpy(array).to(task.device) for name, array in found.items()}
        images += int(tensors["images"])
        spread = Spread(tensors["low"], tensors["high"])
        total.merge(ActValues(total.concepts, tensors["sum"], tensors["count"], spread))
    if not images:
        raise BadLabels(f"no image has activations at {task.params['site']}; all were set aside")
    dead_U = total.spread.silent
    top = start_lists(task, dead_U)
    concepts_M = torch.from_numpy(task.labels.concepts).to(task.device)
    top.add_at(torch.arange(task.units, device=task.device), concepts_M, total.scores())
    yield from list_parts(task, top, dead_U, images)
