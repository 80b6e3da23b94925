"""What a generator draws as an image set: drawn where it is read, each image from its seed and number alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from jobs.index_images.ppm import encode_ppm
from jobs.index_images.sources import Record, Source
from jobs.index_images.texts import as_texts
from jobs.protocol import FileInfo, Files
from miclip_core.generate.files import files_sha256
from miclip_core.generate.location import parse_generated, parse_image
from schemas.errors import BadRef, ImageChanged
from schemas.refs import ImageSetRef

if TYPE_CHECKING:
    from miclip_core.generate.generator import Generator

BLOCK = 256  # images per block
_STAMP = 16


class GeneratedSource(Source):
    """`generated:demo:generator,seed=0,n=1600`: another state of the generator's files is another listing."""

    looked_for = "images"

    def __init__(self, ref: ImageSetRef, files: Files) -> None:
        super().__init__(ref, files)
        self._set = parse_generated(ref)
        self._generator: Generator | None = None
        self._lock = threading.Lock()

    def blocks(self) -> list[FileInfo]:
        starts = range(0, self._set.n, BLOCK)
        spans = [(start, min(start + BLOCK, self._set.n)) for start in starts]
        # How large an image is only the generator knows, which is not built for a listing: sizes count images.
        stamp = files_sha256(self._set.model)[:_STAMP]
        return [FileInfo(f"{self.ref}#{a}-{b}", b - a, stamp) for a, b in spans]

    def records(self, block: FileInfo) -> Iterator[Record]:
        if block.stamp != files_sha256(self._set.model)[:_STAMP]:
            raise ImageChanged(
                f"{self._set.model}: its files changed since the set was listed; index the image set again"
            )
        start, stop = map(int, block.uri.rpartition("#")[2].split("-"))
        for i in range(start, stop):
            data = self._draw(i)
            (truth,) = self._load().truth_rows(self._set.seed, [i])
            label, caption, rest = as_texts(truth)
            yield Record(self._set.image_uri(i), f"{i:06d}", len(data), data, label, caption, rest)

    def read(self, uri: str) -> bytes:
        try:
            of, number = parse_image(uri)
        except BadRef as error:
            raise ImageChanged(f"{uri} is no image of {self.ref}: {error}") from None
        if of != self._set or number >= of.n:
            raise ImageChanged(f"{uri} is no image of {self.ref}")
        return self._draw(number)

    def _draw(self, index: int) -> bytes:
        (image,) = self._load().sample(self._set.seed, [index]).numpy()
        return encode_ppm(np.ascontiguousarray(image.transpose(1, 2, 0)))

    def _load(self) -> Generator:
        """The generator, built when the first image is drawn: planning lists image sets without it."""
        from miclip_core.generate.load import load_generator

        with self._lock:
            if self._generator is None:
                self._generator = load_generator(self._set.model)
            return self._generator
