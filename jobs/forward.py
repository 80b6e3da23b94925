"""Rows of an index through one model: decoded ahead, in batches of the planned shape, tapped at sites."""

from __future__ import annotations

from bisect import bisect_right
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

    def run(
        self, inputs: Inputs, ranges: Sequence[tuple[int, int]], sites: Sequence[Site], apart: bool = False
    ) -> Iterator[ImageBatch]:
        """Usable images among rows [start, stop) of the index, one range after another; a batch may hold several ranges.

        apart: no batch does, so that what shares a batch, and with it the last bits, is of the range alone.

        Raises:
            ImageChanged: on_changed is stop and an image is not what was indexed.
            OutOfMemory: the device cannot hold one image.
        """
        for batch in self.pixels(inputs, ranges, apart):
            if batch.problems:
                yield ImageBatch(problems=batch.problems)
            yield from self._tap(batch.images, batch.pixels, sites)

    def pixels(self, inputs: Inputs, ranges: Sequence[tuple[int, int]], apart: bool = False) -> Iterator[PixelBatch]:
        """The same images as pixels, in batches of the shape that `run` forwards. Raises ImageChanged as `run` does."""
        size, geometry = self._batch_size, self._model.facts.geometry
        return read_pixels(inputs, self._forward, geometry, ranges, self._threads, batch_size=size, apart=apart)

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
            start += len(some)
            made = [ImageBatch(some, out)]
            del out
            yield made.pop()  # what was tapped is whoever's asked for it alone, and gone when they drop it


def read_pixels(
    inputs: Inputs,
    forward: Forward,
    geometry: Geometry,
    ranges: Sequence[tuple[int, int]],
    threads: int,
    batch_size: int,
    wanted: Container[int] | None = None,
    apart: bool = False,
) -> Iterator[PixelBatch]:
    """Usable images among rows [start, stop) of the index as its model sees them, whose geometry this is.

    wanted: rows of the index; other images are not even decoded. apart: no batch holds images of several ranges.

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
        group=partial(bisect_right, sorted(start for start, _ in ranges)) if apart else lambda image_index: 0,
    )
