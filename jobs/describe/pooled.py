"""One activation per image and unit of all images, stored in blocks of units: for methods that rank all images of a unit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jobs.describe.sizes import BLOCK_NUMBERS
from jobs.describe.task import Task
from jobs.protocol import Artifact
from miclip_core.dissect.spread import Spread

IMAGES = "images"


def unit_blocks(units: int, each: int, numbers: int = BLOCK_NUMBERS) -> list[slice]:
    """Blocks of units, of each of which there are `each` numbers, so that a block has at most so many (or is one unit)."""
    step = max(1, numbers // max(each, 1))
    return [slice(first, min(first + step, units)) for first in range(0, units, step)]


class PooledShard:
    """What is kept of the images of one shard; of an SAE only what is not 0."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._images: list[np.ndarray] = []
        self._dense: list[np.ndarray] = []
        self._sparse: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._spread = Spread()

    def add(self, image_index: np.ndarray, t_BU: Tensor) -> None:
        """The next images [B] and their pooled activations [B,U]. Raises: NonFiniteActivation."""
        self._spread.add(t_BU)
        before = sum(map(len, self._images))
        self._images.append(image_index)
        t = t_BU.float().cpu().numpy()
        if self._task.sae is None:
            self._dense.append(t)
        else:
            row, unit = np.nonzero(t)
            self._sparse.append(((row + before).astype(np.int32), unit.astype(np.int32), t[row, unit]))

    def results(self) -> Iterator[Artifact]:
        """The images, and their activations block by block; nothing if there is no image."""
        if self._spread.low_U is None or self._spread.high_U is None:
            return
        ends = {"low": self._spread.low_U, "high": self._spread.high_U}
        yield self._task.pack(IMAGES, {"image_index": np.concatenate(self._images), **ends})
        blocks = unit_blocks(self._task.units, self._task.plan.rounds[0].rows)
        if self._dense:
            whole = np.concatenate(self._dense)
            yield from (self._task.pack(_name(n), {"dense": whole[:, units]}) for n, units in enumerate(blocks))
            return
        row, unit, value = (np.concatenate(column) for column in zip(*self._sparse, strict=True))
        for number, units in enumerate(blocks):
            inside = (unit >= units.start) & (unit < units.stop)
            arrays = {"row": row[inside], "unit": unit[inside] - np.int32(units.start), "value": value[inside]}
            yield self._task.pack(_name(number), arrays)


@dataclass(frozen=True, eq=False)
class Pooled:
    """All images that were seen, whose activations are read one block of units at a time.

    image_index int64 [N]; counts: images of each shard that has any; spread: of all units.
    """

    task: Task
    image_index: np.ndarray
    counts: tuple[int, ...]
    spread: Spread

    @classmethod
    def open(cls, task: Task) -> Pooled:
        """What the shards of round `map` stored."""
        spread, images = Spread(), []
        for found in task.partials("map", IMAGES):
            low_U, high_U = (torch.from_numpy(found[name]).to(task.device) for name in ("low", "high"))
            spread.merge(Spread(low_U, high_U))
            images.append(found["image_index"])
        whole = np.concatenate(images) if images else np.empty(0, np.int64)
        return cls(task, whole, tuple(map(len, images)), spread)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Units, and their activations float32 [N, units of the block]."""
        for number, units in enumerate(unit_blocks(self.task.units, self.task.plan.rounds[0].rows)):
            t_NU = np.zeros((len(self.image_index), units.stop - units.start), np.float32)
            first = 0
            for count, found in zip(self.counts, self.task.partials("map", _name(number)), strict=True):
                if "dense" in found:
                    t_NU[first : first + count] = found["dense"]
                else:
                    t_NU[first + found["row"], found["unit"]] = found["value"]
                first += count
            yield units, torch.from_numpy(t_NU).to(self.task.device)


def _name(block: int) -> str:
    return f"pooled-{block:05d}"
