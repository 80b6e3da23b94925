"""Image bytes to batches of pixels of the planned shape, decoded in threads ahead of the forward pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from jobs.protocol import ImageBytes
from miclip_core.images import Orientation, decode
from schemas.errors import ImageChanged, ImageUndecodable

ToPixels = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Problem:
    """An image that is set aside: the row of `bad_inputs` without its stage."""

    image: ImageBytes
    reason: str
    detail: str


@dataclass
class PixelBatch:
    """Pixels uint8 [batch_size, 3, h, w] for the images; rows behind the last image repeat it and count for nothing."""

    images: list[ImageBytes]
    pixels: Tensor
    problems: list[Problem] = field(default_factory=list)


def iter_pixels(
    images: Iterator[ImageBytes],
    to_pixels: ToPixels,
    *,
    batch_size: int,
    threads: int,
    orientation: Orientation,
    on_changed: str,
    group: Callable[[int], int] = lambda image_index: 0,
) -> Iterator[PixelBatch]:
    """Batches in image order; the last may hold problems alone. Decoding runs at most two batches ahead.

    group: of an image by its image_index; a batch holds images of one group alone.

    Raises:
        ImageChanged: `on_changed` is stop and an image's bytes differ from the index, or it is gone.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[ImageBytes, Future[Tensor | Problem]]] = deque()
        batch = _Batch(batch_size, group)

        def one(image: ImageBytes) -> Tensor | Problem:
            return _decode(image, to_pixels, orientation, on_changed)

        for image in images:
            waiting.append((image._replace(data=None), pool.submit(one, image)))
            if len(waiting) >= 2 * batch_size:
                yield from batch.add(*waiting.popleft())
        while waiting:
            yield from batch.add(*waiting.popleft())
        yield from batch.rest()


def _decode(image: ImageBytes, to_pixels: ToPixels, orientation: Orientation, on_changed: str) -> Tensor | Problem:
    if image.data is None:
        reason = image.problem or "missing"
        words = "its bytes differ from the index" if reason == "checksum" else "it is gone"
        if on_changed == "stop":
            raise ImageChanged(
                f"{image.uri}: {words} (image {image.image_id}); restore it, index the image set again, "
                "or set on_changed: quarantine"
            )
        return Problem(image, reason, words)
    try:
        return to_pixels(decode(image.data, orientation))
    except ImageUndecodable as error:
        return Problem(image, error.reason, str(error))


class _Batch:
    """Collects decoded images until a batch is full."""

    def __init__(self, size: int, group: Callable[[int], int]) -> None:
        self._size = size
        self._group = group
        self._images: list[ImageBytes] = []
        self._pixels: list[Tensor] = []
        self._problems: list[Problem] = []

    def add(self, image: ImageBytes, decoded: Future[Tensor | Problem]) -> Iterator[PixelBatch]:
        result = decoded.result()
        if isinstance(result, Problem):
            self._problems.append(Problem(image, result.reason, result.detail))
            return
        if self._images and self._group(image.image_index) != self._group(self._images[-1].image_index):
            yield from self.rest()
        self._images.append(image)
        self._pixels.append(result)
        if len(self._images) == self._size:
            yield self._take()

    def rest(self) -> Iterator[PixelBatch]:
        if self._images:
            self._pixels += [self._pixels[-1]] * (self._size - len(self._pixels))
            yield self._take()
        elif self._problems:
            yield PixelBatch([], torch.empty(0), self._problems)

    def _take(self) -> PixelBatch:
        batch = PixelBatch(self._images, torch.stack(self._pixels), self._problems)
        self._images, self._pixels, self._problems = [], [], []
        return batch
