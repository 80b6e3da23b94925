"""AUROC of every unit as a detector of every labelled concept: exact, supervised, so the truth that methods are judged by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from jobs.concept_labels import Labels
from jobs.describe.lists import list_parts, start_lists
from jobs.describe.pooled import Pooled, PooledShard, unit_blocks
from jobs.describe.sizes import RANKED_NUMBERS
from jobs.describe.task import Task
from jobs.describe.units import UnitRows
from jobs.protocol import Artifact, Part
from miclip_core.sae.features.selectivity import score, sort_entries
from schemas.errors import BadLabels


class Collector:
    """The pooled activations of a shard."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._kept = PooledShard(task)

    def add(self, rows: UnitRows) -> None:
        """The next images."""
        self._kept.add(rows.image_index, rows.pooled(self._task.params["pool"]))

    def results(self) -> Iterator[Artifact]:
        """What is kept of the shard."""
        yield from self._kept.results()


collector = Collector


def finish(task: Task) -> Iterator[Part]:
    """The lists of both directions; of a concept that fewer than `min_positives` images have, or lack, there is no score.

    Raises:
        BadSpec: tau above the number of living units. BadLabels: no image was seen, or no concept has enough.
    """
    pooled = Pooled.open(task)
    if not len(pooled.image_index):
        raise BadLabels(f"no image has activations at {task.params['site']}; all were set aside")
    dead_U = pooled.spread.silent
    top = start_lists(task, dead_U)
    concepts_M = torch.from_numpy(task.labels.concepts).to(task.device)
    for units, t_NU in pooled.blocks():
        for some in unit_blocks(t_NU.shape[1], len(t_NU), RANKED_NUMBERS):
            scores_UM = torch.from_numpy(_auroc(task, pooled.image_index, t_NU[:, some])).to(task.device)
            numbers = torch.arange(units.start + some.start, units.start + some.stop, device=task.device)
            top.add_at(numbers, concepts_M, scores_UM.masked_fill_(dead_U[numbers, None], torch.nan))
    yield from list_parts(task, top, dead_U, len(pooled.image_index))


def _auroc(task: Task, images: np.ndarray, t_NU: Tensor) -> np.ndarray:
    """float64 [U, labelled concepts] of some units; NaN where a concept has too few images."""
    t = t_NU.cpu().numpy()
    item, unit = np.nonzero(t)
    entries = sort_entries(unit, t[item, unit], item, t.shape[1])
    labels: Labels = task.labels
    out = np.full((t.shape[1], len(labels.concepts)), np.nan)
    for concepts, category in labels.properties(images):
        found = score(entries, category, int(task.params["min_positives"])).auroc
        out[:, np.searchsorted(labels.concepts, concepts)] = found[:, : len(concepts)]
    return out
