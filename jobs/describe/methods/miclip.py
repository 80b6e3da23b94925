"""MICLIP: units as vectors of a neuron encoder, concepts as texts, compared by cosine (sim(u,c) and top tau, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from jobs.describe.lists import list_parts
from jobs.describe.task import Task
from jobs.describe.units import UnitRows
from jobs.encoders import WEIGHTS
from jobs.protocol import Artifact, Part
from miclip_core.align.encoder import NeuronEncoder, load_encoder
from miclip_core.concepts.cosines import score_blocks
from miclip_core.sae.codes import Codes

SEEN = "seen"
"""count int64 [U]: positions at which a unit is not 0; sum float64 [U] of its activations there; images."""


class Collector:
    """How often each unit is active and how strongly: which units are dead, and the mean of `decoded_mean`."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._count_U = torch.zeros(task.units, dtype=torch.int64, device=task.device)
        self._sum_U = torch.zeros(task.units, dtype=torch.float64, device=task.device)
        self._images = 0

    def add(self, rows: UnitRows) -> None:
        """The next images."""
        self._images += len(rows.images)
        if isinstance(rows.values, Codes):
            latents = rows.values.latents.long()
            self._count_U += torch.bincount(latents, minlength=rows.values.width)
            self._sum_U.index_add_(0, latents, rows.values.values.double())
        else:
            self._count_U += (rows.values != 0).sum(0)
            self._sum_U += rows.values.double().sum(0)

    def results(self) -> Iterator[Artifact]:
        """The sums of the shard."""
        images = torch.tensor(self._images)
        yield self._task.pack(SEEN, {"count": self._count_U, "sum": self._sum_U, "images": images})


collector = Collector


def finish(task: Task) -> Iterator[Part]:
    """The lists of both directions.

    Raises:
        BadSpec: tau above the number of living units. BadAlignment: the SAE is of another model, site or width.
    """
    count_U, sum_U, images = _seen(task)
    dead_U = count_U == 0
    encoder = load_encoder(task.inputs.published(task.plan.stage.inputs["encoder"], WEIGHTS)).to(task.device)
    units_UE = _embed(task, encoder, (sum_U / count_U).float())
    top = score_blocks(units_UE, task.texts_ME, task.tau, ~dead_U)
    without = ~(units_UE.isfinite().all(1) & (units_UE != 0).any(1))
    mode = "jacobian" if encoder.config.jacobian else str(task.params["unit_mode"])
    yield from list_parts(task, top, dead_U | without, images, unit_mode=mode)


def _seen(task: Task) -> tuple[Tensor, Tensor, int]:
    """Over all images: how often each unit was active, the sums of its activations, and how many images there were."""
    count_U = torch.zeros(task.units, dtype=torch.int64)
    sum_U = torch.zeros(task.units, dtype=torch.float64)
    images = 0
    for found in task.partials("map", SEEN):
        count_U += torch.from_numpy(found["count"])
        sum_U += torch.from_numpy(found["sum"])
        images += int(found["images"])
    return count_U.to(task.device), sum_U.to(task.device), images


def _embed(task: Task, encoder: NeuronEncoder, mean_U: Tensor) -> Tensor:
    """The vectors [U,E] of the units in the space of the CLIP."""
    if task.sae is None:
        return encoder.embed_units()
    if task.params["unit_mode"] == "direction":
        return encoder.embed_latents(task.sae)
    return encoder.embed_latents(task.sae, "decoded_mean", mean_U)
