"""The demo world as an image set: rendered where it is read, as bytes that are equal on every machine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jobs.index_images.ppm import encode_ppm, ppm_size
from jobs.index_images.sources import Record, Source
from jobs.index_images.texts import as_texts
from jobs.protocol import FileInfo, Files
from miclip_core.world import atlas
from miclip_core.world.location import parse_location
from miclip_core.world.render import render, render_scenes
from miclip_core.world.scene import HELD_OUT_INDICES, IMAGE_SIZE, attributes
from miclip_core.world.truth import truth_rows
from schemas.errors import ImageChanged
from schemas.refs import ImageSetRef

BLOCK = 256  # images per block
_IMAGE_BYTES = ppm_size(IMAGE_SIZE, IMAGE_SIZE)


class WorldSource(Source):
    """`world:seed=0,n=2000`: images that no member of the demo zoo was trained on, with their truth as attributes."""

    looked_for = "images"

    def __init__(self, ref: ImageSetRef, files: Files) -> None:
        super().__init__(ref, files)
        self._world, self._n = parse_location(ref)

    def blocks(self) -> list[FileInfo]:
        starts = range(0, self._n, BLOCK)
        spans = [(start, min(start + BLOCK, self._n)) for start in starts]
        return [FileInfo(f"{self.ref}#{a}-{b}", (b - a) * _IMAGE_BYTES, atlas.SHA256[:16]) for a, b in spans]

    def records(self, block: FileInfo) -> Iterator[Record]:
        start, stop = map(int, block.uri.rpartition("#")[2].split("-"))
        scenes = attributes(self._world, HELD_OUT_INDICES.start + np.arange(start, stop))
        images, _ = render_scenes(scenes)
        for i, image, truth in zip(range(start, stop), images, truth_rows(scenes), strict=True):
            label, caption, rest = as_texts(truth)
            yield Record(f"{self.ref}#{i}", f"{i:06d}", _IMAGE_BYTES, encode_ppm(image), label, caption, rest)

    def read(self, uri: str) -> bytes:
        ref, _, number = uri.rpartition("#")
        if ref != str(self.ref) or int(number) >= self._n:
            raise ImageChanged(f"{uri} is no image of {self.ref}")
        return encode_ppm(render(self._world, HELD_OUT_INDICES.start + int(number))[0])
