"""What a worker may read, over a store: images, published tables, artifacts of earlier rounds, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from cluster.cache import fetch_to_node
from cluster.files import Files
from cluster.image_reader import ImageReader
from cluster.ledger import get_checked, load_artifact, load_done, load_published
from cluster.listing import load_listing
from cluster.parquet import read_part
from cluster.range_reader import RangeReader
from cluster.stores.base import Store
from jobs.protocol import FileInfo, ImageBytes
from schemas.errors import InputUnreadable, KeyMissing, Unreachable
from schemas.plans import Published, StoredPart
from schemas.tables import get_table


class InputFiles:
    """The user's files as a worker reads them: trouble with one of them fails its shard, not the whole run."""

    def __init__(self) -> None:
        self._files = Files()

    def list(self, location: str) -> list[FileInfo]:
        """As `Files.list`."""
        with _own_trouble(location):
            return self._files.list(location)

    def read(self, uri: str) -> bytes:
        """As `Files.read`."""
        with _own_trouble(uri):
            return self._files.read(uri)

    def read_range(self, uri: str, start: int, length: int) -> bytes:
        """As `Files.read_range`."""
        with _own_trouble(uri):
            return self._files.read_range(uri, start, length)


@contextmanager
def _own_trouble(uri: str) -> Iterator[None]:
    try:
        yield
    except Unreachable as error:
        raise InputUnreadable(f"{uri} cannot be read: {error}") from error


class StoreInputs:
    """The `Inputs` port of `jobs/protocol.py`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.files = InputFiles()
        self._images = ImageReader(store, self.files)
        self._ranges = RangeReader(store)
        self._published: dict[str, Published] = {}

    def images(self, index: str, start: int, stop: int) -> Iterator[ImageBytes]:
        """Usable images among rows [start, stop) of a published index, in order, read ahead."""
        return self._images.images(index, start, stop)

    def table(
        self,
        stage: str,
        table: str,
        columns: Sequence[str] | None = None,
        between: tuple[str, Sequence[tuple[int, int]]] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Rows of a published table, in part order.

        between: (integer column, disjoint ranges [start, stop)) leaves only rows in one of them and reads only row
        groups that may have some.

        Raises:
            KeyMissing: the stage has published no such table.
            DamagedPart: a part's bytes are not those its marker names.
            OlderPart: a part is older than a column that may not be null; others are null where a part lacks them.
        """
        parts, declared = self._parts(stage, table), get_table(table)
        if between is not None:
            yield from self._ranges.read(parts, declared, columns, *between)
            return
        for part in parts:
            yield from read_part(get_checked(self._store, part), columns or None, declared).to_batches()

    def _parts(self, stage: str, table: str) -> tuple[StoredPart, ...]:
        if stage not in self._published:  # what is published never changes, so it is asked for once
            published = load_published(self._store, stage)
            if published is None:
                raise KeyMissing(f"stage {stage} has published no table {table}")
            self._published[stage] = published
        if table not in self._published[stage].tables:
            raise KeyMissing(f"stage {stage} has published no table {table}")
        return self._published[stage].tables[table]

    def shard_table(self, stage: str, shard: int, table: str) -> pa.Table:
        """What one finished shard wrote to a table."""
        marker = load_done(self._store, stage, shard)
        declared = get_table(table)
        parts = [read_part(get_checked(self._store, p), table=declared) for p in marker.parts if p.table == table]
        return pa.concat_tables(parts) if parts else declared.schema.empty_table()

    def artifact(self, stage: str, shard: int, name: str) -> bytes:
        """An artifact of a finished shard.

        Raises:
            KeyMissing: the shard made no artifact of that name.
        """
        return load_artifact(self._store, stage, shard, name)

    def published(self, stage: str, name: str) -> bytes:
        """An artifact that another stage has published.

        Raises:
            KeyMissing: the stage has published no such artifact.
            DamagedPart: its bytes are not those that were published.
        """
        published = load_published(self._store, stage)
        for stored in published.artifacts if published is not None else ():
            if stored.name == name:
                return get_checked(self._store, stored)
        raise KeyMissing(f"stage {stage} has published no artifact {name}")

    def listing(self, sha256: str) -> pa.Table:
        """A frozen list of files."""
        return load_listing(self._store, sha256)

    def local_path(self, location: str) -> Path:
        """`file:/...` or `s3://...` as a local path, fetched once per node."""
        return fetch_to_node(self.files, location)
