"""Where network dissection has masks from: the demo world's own label maps, or a model that finds what a text names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from jobs.activations import Forward
from jobs.columns import as_ranges, read_index
from jobs.describe.task import Task
from jobs.files import open_planned
from jobs.forward import read_pixels
from jobs.protocol import Inputs
from miclip_core.concepts.names import world_values
from miclip_core.dissect.masks import Masks, PackedMasks, TruthSegmenter
from miclip_core.dissect.segment import TextSegmenter
from miclip_core.world.location import parse_location
from miclip_core.world.scene import HELD_OUT_INDICES, World
from schemas.base import canonical_json
from schemas.errors import BadSpec
from schemas.models import Geometry
from schemas.plans import load_json
from schemas.refs import ImageSetRef

MASK_BYTES = 256 << 20
"""Masks that a text-driven segmenter may make at once if it finds every concept everywhere; one image is the least."""
MASK_PIXELS = 352 * 352
"""Of a mask of CLIPSeg as it is published."""


@dataclass(frozen=True, eq=False)
class Found:
    """Masks of those of some images that something is known about. places: which ones of them, ascending."""

    places: tuple[int, ...]
    packed: PackedMasks


class MaskSource(Protocol):
    """Masks of the images of one index. `known`: numbers of the concepts it can find, ascending, int64; concept k of its masks is known[k]."""

    @property
    def known(self) -> Tensor:
        """As said above."""
        ...

    def find(self, images: Sequence[int]) -> Found:
        """Masks of images by their ascending rows in the index."""
        ...


def open_segmenter(task: Task) -> MaskSource:
    """What a stage's `segmenter` names; opened once for all shards and stages of a worker that ask for the same.

    Raises:
        BadSpec: the demo world's truth is asked for, and no image is of it.
        WeightsMissing: the model's folder is not what it was when the run was planned. Further what `TextSegmenter` raises.
    """
    forward = task.forward
    if task.params["segmenter"] == "truth":
        names = task.concepts
        key = ("truth", forward.index, forward.rows, names)
        return task.hold(key, lambda: Remembered(WorldMasks(task.inputs, forward.index, forward.rows, names)))

    phrases = tuple(task.params["phrases"])  # of the same names there may be others

    def open_folder() -> MaskSource:
        folder = open_planned(task.inputs, str(task.plan.effort["folder"]), str(task.params["segmenter"]))
        segmenter = TextSegmenter(folder, phrases, device=task.device)
        geometry = load_json(Geometry, canonical_json(task.plan.effort["geometry"]))
        threads = task.setting.resources.decode_threads
        return Remembered(FoundMasks(task.inputs, forward, geometry, segmenter, threads))

    return task.hold((task.params["segmenter"], phrases), open_folder)


class Remembered:
    """A source that gives what it found last once more: the units of several sites are looked at on the same images."""

    def __init__(self, source: MaskSource) -> None:
        self._source, self.known = source, source.known
        self._last: tuple[tuple[int, ...], Found | None] = (), None

    def find(self, images: Sequence[int]) -> Found:
        """As `MaskSource.find`."""
        asked, found = self._last
        if found is None or asked != tuple(images):
            found = self._source.find(images)
            self._last = tuple(images), found
        return found


class WorldMasks:
    """The label maps of the demo world, whose values are given to concepts by name (see `world_values`).

    Raises:
        BadSpec: the images are none of it.
    """

    def __init__(self, inputs: Inputs, index: str, rows: int, names: Sequence[str]) -> None:
        columns = world_values(names)
        uris = read_index(inputs, index, "uri", [(0, rows)])
        sets = {str(uri).partition("#")[0] for uri in uris.values()}
        if len(sets) != 1 or not next(iter(sets)).startswith("world:"):
            raise BadSpec(
                f"segmenter truth knows the images of world:... alone, found {', '.join(sorted(sets)[:2])}; give those, or a "
                "segmenter: file:/folder of a CLIPSeg model"
            )
        world, _ = parse_location(ImageSetRef.parse(sets.pop()))
        self._number = {i: HELD_OUT_INDICES.start + int(str(uri).rpartition("#")[2]) for i, uri in uris.items()}
        self._segmenter = _segmenter(world, columns)
        known = sorted(set(columns.values()))
        self.known = torch.tensor(known)
        place = {m: k for k, m in enumerate(known)}
        self._places = torch.tensor([place.get(columns.get(full, -1), -1) for full in self._segmenter.concepts])

    def find(self, images: Sequence[int]) -> Found:
        """As `MaskSource.find`; every image is known."""
        numbers = torch.tensor([self._number[i] for i in images])
        masks = self._segmenter.segment(torch.empty(0), numbers)
        return Found(tuple(range(len(images))), masks.of_concepts(self._places, len(self.known)).pack())


def _segmenter(world: World, columns: dict[str, int]) -> TruthSegmenter:
    return TruthSegmenter(world, tuple(dict.fromkeys(full.partition("=")[0] for full in columns)))


class FoundMasks:
    """Masks that a model finds in the pixels that the dissected model sees; it knows every concept.

    An image that can no longer be read is left out.
    """

    def __init__(
        self, inputs: Inputs, forward: Forward, geometry: Geometry, segmenter: TextSegmenter, threads: int
    ) -> None:
        self._inputs, self._forward, self._geometry = inputs, forward, geometry
        self._segmenter, self._threads = segmenter, threads
        self.known = torch.arange(len(segmenter.concepts))
        self._at_once = max(1, MASK_BYTES // (MASK_PIXELS * len(self.known)))

    def find(self, images: Sequence[int]) -> Found:
        """As `MaskSource.find`."""
        place = {index: i for i, index in enumerate(images)}
        places: list[int] = []
        parts: list[PackedMasks] = []
        for index, pixels_BCIJ in self._pixels(images):
            places += [place[i] for i in index.tolist()]
            parts.append(self._segmenter.segment(pixels_BCIJ, index).pack())
        return Found(tuple(places), _join(parts) if parts else Masks.from_dense(_nothing(len(self.known))).pack())

    def _pixels(self, images: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the index and their pixels, as many as may be looked at at once."""
        batches = read_pixels(
            self._inputs, self._forward, self._geometry, as_ranges(images), self._threads, self._at_once
        )
        for batch in batches:
            if batch.images:
                index = torch.tensor([image.image_index for image in batch.images])
                yield index, batch.pixels[: len(index)]


def _nothing(concepts: int) -> Tensor:
    return torch.zeros(0, concepts, 1, 1, dtype=torch.bool)


def _join(parts: Sequence[PackedMasks]) -> PackedMasks:
    """Masks of the images of all parts, one after another."""
    first = np.cumsum([0, *(part.about.n_images for part in parts)]).tolist()
    image = torch.cat([part.about.image + start for part, start in zip(parts, first)])
    concept = torch.cat([part.about.concept for part in parts])
    about = parts[0].about
    return PackedMasks(
        Masks(image, concept, about.mask, first[-1], about.n_concepts), np.concatenate([part.bits for part in parts])
    )
