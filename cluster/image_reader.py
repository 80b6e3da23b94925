"""The bytes of indexed images, in order, read ahead of use in threads and checked against the index."""

from __future__ import annotations

import hashlib
import json
import threading
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.ledger import load_artifact, load_done, load_plan
from cluster.stores.base import Store
from jobs.ahead import in_order
from jobs.index_images.plan import DUPLICATES, WRITE
from jobs.index_images.sources import Source, open_source
from jobs.protocol import Files, ImageBytes
from schemas.errors import DamagedPart, ImageChanged, KeyMissing
from schemas.plans import Shard, StoredPart
from schemas.refs import ImageSetRef

READERS = 8
AHEAD_IMAGES = 256
AHEAD_BYTES = 256 << 20
_COLUMNS = ["image_index", "image_id", "uri", "bytes", "sha256", "duplicate_of"]


class _Index(NamedTuple):
    """One published index: its source, the shards that wrote its tables, and the first image index of each."""

    source: Source
    shards: list[Shard]
    starts: list[int]


class ImageReader:
    """Reads images of any published index; memory is bounded by what is read ahead, not by the index."""

    def __init__(self, store: Store, files: Files, threads: int = READERS) -> None:
        self._store = store
        self._files = files
        self._threads = threads
        self._indices: dict[str, _Index] = {}
        self._lock = threading.Lock()

    def images(self, index: str, start: int, stop: int) -> Iterator[ImageBytes]:
        """Usable images among rows [start, stop) of the index `index`, in order: no duplicates, no bad inputs.

        Bytes that differ from the index are read once more, then given as the problem `checksum`; a file that is gone
        as `missing`.

        Raises:
            KeyMissing: there is no such index. DamagedPart: its tables are not what was published.
            InputUnreadable: an image cannot be reached; nothing is skipped for that.
        """
        opened = self._open(index)
        rows = (row for table in self._rows(index, opened, start, stop) for row in table.to_pylist())
        return in_order(
            lambda row: _read(opened.source, row),
            rows,
            self._threads,
            AHEAD_IMAGES,
            lambda row: row["bytes"],
            AHEAD_BYTES,
        )

    def _open(self, index: str) -> _Index:
        with self._lock:
            if index not in self._indices:
                plan = load_plan(self._store, index)
                compared = next(iter(plan.shards(DUPLICATES))).number
                starts = json.loads(load_artifact(self._store, index, compared, "summary"))["starts"]
                source = open_source(ImageSetRef.parse(plan.stage.subject), self._files)
                self._indices[index] = _Index(source, list(plan.shards(WRITE)), starts)
            return self._indices[index]

    def _rows(self, index: str, opened: _Index, start: int, stop: int) -> Iterator[pa.Table]:
        """Rows of `images` to be read, part by part."""
        for i in range(max(0, bisect_right(opened.starts, start) - 1), len(opened.shards)):
            if opened.starts[i] >= stop:
                return
            if opened.starts[i + 1] <= start:
                continue
            for part in load_done(self._store, index, opened.shards[i].number).parts:
                if part.table == "images":
                    table = self._part(part)
                    number = table.column("image_index")
                    wanted = pc.and_(pc.greater_equal(number, start), pc.less(number, stop))
                    yield table.filter(pc.and_(wanted, pc.is_null(table.column("duplicate_of"))))

    def _part(self, part: StoredPart) -> pa.Table:
        """The columns of one part that say where its images are."""
        filesystem, root = self._store.arrow_fs()
        try:
            with pq.ParquetFile(f"{root}/{part.key}", filesystem=filesystem) as file:
                table = file.read(_COLUMNS, use_threads=False)
        except FileNotFoundError:
            raise DamagedPart(f"{part.key} is published but gone; restore it") from None
        except pa.ArrowInvalid as error:
            raise DamagedPart(f"{part.key} is published but cannot be read: {error}; restore it") from error
        if len(table) != part.rows:
            raise DamagedPart(f"{part.key}: expected {part.rows} rows, found {len(table)}; restore it")
        return table


def _read(source: Source, row: dict[str, object]) -> ImageBytes:
    """One image, or what became of it since it was indexed."""
    uri, sha256 = str(row["uri"]), row["sha256"]
    place = (int(str(row["image_index"])), str(row["image_id"]), uri)
    for _ in range(2):  # once more, in case the first answer was damaged on its way
        try:
            data = source.read(uri)
        except KeyMissing:
            return ImageBytes(*place, None, "missing")
        except ImageChanged:
            continue
        if hashlib.sha256(data).hexdigest() == sha256:
            return ImageBytes(*place, data)
    return ImageBytes(*place, None, "checksum")
