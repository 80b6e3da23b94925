"""Image bytes to batches: order, the shape of the last batch, how far decoding runs ahead, and images set aside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from jobs.pixels import PixelBatch, iter_pixels
from jobs.protocol import ImageBytes
from schemas.errors import ImageChanged
from tests.pictures import encode


def solid(index: int, value: int | None = None) -> ImageBytes:
    """A 2 x 2 image whose pixels are its index."""
    data = encode(np.full((2, 2, 3), index if value is None else value, np.uint8))
    return ImageBytes(index, f"{index:032x}", f"/photos/{index}.png", data)


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image)).permute(2, 0, 1)


def batches(images: Any, batch_size: int = 4, on_changed: str = "stop", **options: Any) -> Iterator[PixelBatch]:
    settings = {"to_pixels": to_tensor, "threads": 3, "orientation": "upright", **options}
    return iter_pixels(iter(images), batch_size=batch_size, on_changed=on_changed, **settings)


def test_images_come_in_order_in_batches_of_the_planned_shape():
    found = list(batches(solid(i) for i in range(10)))
    assert [batch.pixels.shape for batch in found] == [(4, 3, 2, 2)] * 3
    assert [image.image_index for batch in found for image in batch.images] == list(range(10))
    values = [batch.pixels[i, 0, 0, 0].item() for batch in found for i in range(len(batch.images))]
    assert values == list(range(10)) and all(batch.pixels.dtype == torch.uint8 for batch in found)


def test_the_last_batch_is_padded_with_its_last_image_which_counts_for_nothing():
    (batch,) = batches([solid(1), solid(2)])
    assert [image.image_index for image in batch.images] == [1, 2]
    assert batch.pixels[:, 0, 0, 0].tolist() == [1, 2, 2, 2]


def test_no_images_are_no_batches():
    assert list(batches([])) == []


def test_decoded_images_no_longer_hold_their_bytes():
    (batch,) = batches([solid(1)])
    assert batch.images[0].data is None


def test_what_does_not_decode_is_set_aside_with_its_reason_and_takes_no_place_in_a_batch():
    damaged = solid(1)._replace(data=b"not an image")
    (batch,) = batches([solid(0), damaged, solid(2)], batch_size=2)
    assert [image.image_index for image in batch.images] == [0, 2]
    assert [(p.image.image_index, p.reason) for p in batch.problems] == [(1, "not_an_image")]


def test_problems_alone_still_come_out():
    empty = [solid(i)._replace(data=b"") for i in range(3)]
    (batch,) = batches(empty)
    assert batch.images == [] and [p.reason for p in batch.problems] == ["empty"] * 3


@pytest.mark.parametrize(
    ("problem", "words"), [("checksum", "its bytes differ from the index"), ("missing", "it is gone")]
)
def test_a_changed_or_vanished_image_stops_the_shard_or_is_set_aside_as_the_spec_says(problem, words):
    images = [solid(0), solid(1)._replace(data=None, problem=problem)]
    with pytest.raises(ImageChanged, match=f"/photos/1.png: {words} .*on_changed: quarantine"):
        list(batches(images))
    (batch,) = batches(images, on_changed="quarantine")
    assert [(p.reason, p.detail) for p in batch.problems] == [(problem, words)]
    assert [image.image_index for image in batch.images] == [0]


def test_orientation_is_applied_before_the_pixels_are_made():
    """EXIF orientation 6: what is stored as the left column is the top row for a person."""
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    image = ImageBytes(0, "0" * 32, "/a.png", encode(picture, exif=exif.tobytes()))
    (upright,) = batches([image], batch_size=1)
    (stored,) = batches([image], batch_size=1, orientation="as_stored")
    assert upright.pixels[0, 0].tolist() == [[255, 255], [0, 0]]
    assert stored.pixels[0, 0].tolist() == [[255, 0], [255, 0]]


def test_decoding_runs_at_most_two_batches_ahead():
    """Nothing is taken from the reader beyond 2 x 4 images waiting and the 4 of the batch in hand."""
    taken: list[int] = []

    def reader() -> Iterator[ImageBytes]:
        for i in range(100):
            taken.append(i)
            yield solid(i)

    stream = batches(reader())
    next(stream)
    assert len(taken) <= 12


def test_images_are_decoded_in_the_threads_that_the_spec_states():
    names: set[str] = set()
    together = threading.Barrier(3, timeout=240)

    def meet(image: Image.Image) -> Tensor:
        names.add(threading.current_thread().name)
        together.wait()
        return to_tensor(image)

    list(batches((solid(i) for i in range(6)), to_pixels=meet, threads=3))
    assert len(names) == 3 and all(name.startswith("decode") for name in names)
