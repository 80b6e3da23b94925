"""Rows of an index through one model: decoded ahead, in batches of the planned shape, tapped at sites."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from jobs.activations import Forward
from jobs.pixels import PixelBatch, Problem, iter_pixels
from jobs.protocol import ImageBytes, Inputs
from miclip_core.zoo.geometry import square_view, to_pixels
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.stream import TappedBatch, tapped
from schemas.errors import OutOfMemory
from schemas.models import Geometry
from schemas.refs import Site


@dataclass(frozen=True)
class ImageBatch:
    """What one forward gave for some images, and the images set aside on the way; `out` is None if there are only those."""

    images: Sequence[ImageBytes] = ()
    out: TappedBatch | None = None
    problems: Sequence[Problem] = field(default_factory=list)


class IndexForward:
    """Runs the images of an index; `notes` says what people should know, such as a batch that was halved."""

    def __init__(self, model: VisionModel, forward: Forward, threads: int) -> None:
        self._model = model
        self._forward = forward
        self._threads = threads
        self._batch_size = int(forward.effort["batch_size"])  # type: ignore[arg-type]
        self.notes: list[str] = []

    def run(self, inputs: Inputs, ranges: Sequence[tuple[int, int]], sites: Sequence[Site]) -> Iterator[ImageBatch]:
        """Usable images among rows [start, stop) of the index, one range after another; a batch may hold several ranges.

        Raises:
            ImageChanged: on_changed is stop and an image is not what was indexed.
            OutOfMemory: the device cannot hold one image.
        """
        for batch in self.pixels(inputs, ranges):
            if batch.problems:
                yield ImageBatch(problems=batch.problems)
            yield from self._tap(batch.images, batch.pixels, sites)

    def pixels(self, inputs: Inputs, ranges: Sequence[tuple[int, int]]) -> Iterator[PixelBatch]:
        """The same images as pixels, in batches of the shape that `run` forwards. Raises ImageChanged as `run` does."""
        return read_pixels(
            inputs, self._forward, self._model.facts.geometry, ranges, self._threads, batch_size=self._batch_size
        )

    def _tap(self, images: Sequence[ImageBytes], pixels: Tensor, sites: Sequence[Site]) -> Iterator[ImageBatch]:
        """One forward at the planned shape; on a device that is too small, at half of it from here on."""
        start = 0
        while start < len(images):
            size = self._batch_size
            some = images[start : start + size]
            ids = [image.image_id for image in some]
            try:
                (out,) = tapped(
                    self._model,
                    [(ids, pixels[start : start + len(some)])],
                    sites,
                    batch_size=size,
                    quarantine=lambda image_id, site: None,
                )
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise OutOfMemory(
                        f"{self._model.facts.model}: one image does not fit on {self._model.device}; "
                        "use a larger device, dtype: bf16, or fewer sites at once"
                    ) from error
                self._batch_size = size // 2
                self.notes.append(f"out of memory at batch size {size}, went on with {self._batch_size}")
                torch.cuda.empty_cache()
                continue
            yield ImageBatch(some, out)
            start += len(some)


def read_pixels(
    inputs: Inputs,
    forward: Forward,
    geometry: Geometry,
    ranges: Sequence[tuple[int, int]],
    threads: int,
    batch_size: int,
    wanted: Container[int] | None = None,
) -> Iterator[PixelBatch]:
    """Usable images among rows [start, stop) of the index as its model sees them, whose geometry this is.

    wanted: rows of the index; other images are not even decoded.

    Raises:
        ImageChanged: on_changed is stop and an image is not what was indexed.
    """
    images = chain.from_iterable(inputs.images(forward.index, start, stop) for start, stop in ranges)
    return iter_pixels(
        (image for image in images if wanted is None or image.image_index in wanted),
        partial(square_view if forward.params["geometry"] == "square" else to_pixels, geometry=geometry),
        batch_size=batch_size,
        threads=threads,
        orientation=forward.params["orientation"],  # type: ignore[arg-type]
        on_changed=str(forward.params["on_changed"]),
    )
