"""Rows to Parquet bytes and back: the measured settings, deterministic row groups, encoding beside the computing."""

from __future__ import annotations

import hashlib
import queue
import tempfile
import threading
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import IO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.parquet import read_parquet
from schemas.columns import Table
from schemas.errors import OlderPart, StoreFull, TableMismatch
from schemas.tables import PART_BYTES, ROW_GROUP_BYTES

MAX_ROW_GROUP = 65536
SMALL_GROUPS = 32
"""Row groups of a part of a table whose row groups are small: more would make its footer long."""
SAMPLE_ROWS = 256
IN_MEMORY_BYTES = 8 << 20
"""A part that grows beyond this waits in a temporary file, so that a shard of any size fits."""


def _settings(table: Table) -> dict[str, object]:
    """zstd-1; vectors split by byte and without dictionary or statistics, ids in a dictionary.

    Small row groups have no page index and statistics of numbers alone, for a reader of one row fetches the whole footer.
    """
    if table.group_rows is not None:
        numbers = [c.name for c in table.columns if pa.types.is_integer(c.type) or pa.types.is_floating(c.type)]
        small: dict[str, object] = {"use_dictionary": False, "write_statistics": numbers, "write_page_index": False}
        return {
            "compression": "zstd",
            "compression_level": 1,
            "write_page_checksum": True,
            "store_schema": True,
            **small,
        }
    vectors = [f"{name}.list.element" for name in table.vectors]
    plain = [c.name for c in table.columns if c.name not in table.vectors and not pa.types.is_map(c.type)]
    strings = [c.name for c in table.columns if pa.types.is_string(c.type)]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": strings,
        "use_byte_stream_split": vectors,
        "write_statistics": plain,
        "write_page_index": True,
        "write_page_checksum": True,
        "store_schema": True,
    }


class EncodedPart(NamedTuple):
    """One finished part, in memory or in a temporary file until it is read."""

    file: IO[bytes]
    rows: int

    def read(self) -> bytes:
        """Its bytes."""
        self.file.seek(0)
        return self.file.read()


class PartEncoder:
    """Encodes batches of one table in a thread of its own; `finish` gives the parts.

    Row groups hold a number of rows that follows from the values of the first rows, and a part a number of row groups,
    so borders and bytes depend on the rows and not on how they arrived. `capacity` bounds the batches waiting to be
    encoded; `part_bytes` counts rows before compression.
    """

    def __init__(self, table: Table, capacity: int = 4, part_bytes: int = PART_BYTES) -> None:
        self._table = table
        self._schema = table.schema
        self._groups_per_part = max(1, part_bytes // ROW_GROUP_BYTES) if table.group_rows is None else SMALL_GROUPS
        self._queue: queue.Queue[pa.RecordBatch | None] = queue.Queue(maxsize=capacity)
        self._parts: list[EncodedPart] = []
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._encode_all, name=f"encode-{table.name}", daemon=True)
        self._thread.start()

    def add(self, batch: pa.RecordBatch) -> None:
        """Hand over a batch.

        Raises:
            TableMismatch: its schema is not the table's, or a column that may not be null holds nulls.
        """
        if self._error is not None:
            raise self._error
        if not batch.schema.equals(self._schema):
            raise TableMismatch(f"table {self._table.name}: expected {self._schema}, found {batch.schema}")
        for column in self._table.columns:
            if not column.nullable and batch.column(column.name).null_count:
                raise TableMismatch(f"table {self._table.name}: column {column.name} holds nulls")
        self._queue.put(batch)

    def finish(self) -> list[EncodedPart]:
        """Every part, in order; no rows, no part."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._parts

    def abandon(self) -> None:
        """Stop without a result, after an error elsewhere."""
        self._error = self._error or TableMismatch("abandoned")
        self._queue.put(None)
        self._thread.join()

    def _encode_all(self) -> None:
        try:
            self._encode()
        except OSError as error:
            self._error = StoreFull(
                f"{tempfile.gettempdir()}: {error.strerror or error} while a part of {self._table.name} waited there to be "
                f"stored; free some space, up to {PART_BYTES:,} bytes a site, or set TMPDIR to a larger folder"
            )
            self._error.__cause__ = error
        except BaseException as error:
            self._error = error
        if self._error is not None:
            for _ in self._batches():  # whoever waits for room in the queue must get on
                pass

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """What is handed over, until the end; after the end nothing more is waited for."""
        while not self._ended:
            batch = self._queue.get()
            if batch is None:
                self._ended = True
            else:
                yield batch

    def _encode(self) -> None:
        groups = _row_groups(self._batches(), self._schema, self._table.group_rows or 0)
        while (first := next(groups, None)) is not None:
            file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115 - read later
            rows = 0
            with pq.ParquetWriter(file, self._schema, **_settings(self._table)) as writer:
                for group in chain([first], islice(groups, self._groups_per_part - 1)):
                    writer.write_table(group, row_group_size=MAX_ROW_GROUP)
                    rows += group.num_rows
            self._parts.append(EncodedPart(file, rows))


def _row_groups(batches: Iterator[pa.RecordBatch], schema: pa.Schema, limit: int = 0) -> Iterator[pa.Table]:
    """The same rows in groups of equal size, each in one piece: the writer cuts pages at the joints of its input.

    limit: rows of a group; those that fit in ROW_GROUP_BYTES if it is 0.
    """
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if limit == 0 and rows >= SAMPLE_ROWS:
            limit = _group_rows(pa.Table.from_batches(waiting, schema))
        while limit and rows >= limit:
            table = pa.Table.from_batches(waiting, schema)
            yield table.slice(0, limit).combine_chunks()
            rest = table.slice(limit)
            waiting, rows = rest.to_batches(), rest.num_rows
    if rows:
        yield pa.Table.from_batches(waiting, schema).combine_chunks()


def _group_rows(table: pa.Table) -> int:
    """A power of two of rows that hold at most ROW_GROUP_BYTES, judged by the first ones."""
    sample = table.slice(0, SAMPLE_ROWS)
    size = sum(_value_bytes(column) for column in sample.columns) / sample.num_rows
    limit = max(1, min(MAX_ROW_GROUP, int(ROW_GROUP_BYTES / max(1, size))))
    return 1 << (limit.bit_length() - 1)


def _value_bytes(column: pa.ChunkedArray) -> float:
    """Bytes of the values alone: the memory that Arrow holds for them also depends on how they are chunked."""
    kind = column.type
    if pa.types.is_map(kind):
        return sum(len(key) + len(value) for row in column.to_pylist() for key, value in row)
    if pa.types.is_list(kind):
        return _value_bytes(pc.list_flatten(column))
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return pc.sum(pc.binary_length(column)).as_py() or 0
    return len(column) * kind.bit_width / 8


def sha256(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def read_part(data: bytes, columns: Sequence[str] | None = None, table: Table | None = None) -> pa.Table:
    """The rows of one part from its bytes; a page that differs from its checksum is an error.

    table: what the part is of, if columns that it is older than shall be null as `complete` says.
    """
    if table is None:
        return read_parquet(data, columns, checked=True)
    names = table.schema.names if columns is None else columns
    there = set(pq.read_schema(pa.BufferReader(data)).names)
    return complete(read_parquet(data, [name for name in names if name in there], checked=True), names, table)


def complete(rows: pa.Table, names: Sequence[str], table: Table) -> pa.Table:
    """These columns of a table's rows, in order; one that the rows were written before is null.

    Raises:
        OlderPart: it may not be null.
    """
    missing = [name for name in names if name not in rows.schema.names]
    for name in missing:
        rows = rows.append_column(table.schema.field(name), pa.nulls(len(rows), table.schema.field(name).type))
    refuse_older(missing, table)
    return rows.select(list(names))


def refuse_older(missing: Sequence[str], table: Table) -> None:
    """Raise OlderPart if one of the columns that a part lacks may not be null."""
    if needed := [name for name in missing if not table.schema.field(name).nullable]:
        raise OlderPart(say_older(needed, table))


def say_older(needed: Sequence[str], table: Table) -> str:
    """What to do about rows that lack columns which may not be null."""
    return (
        f"table {table.name}: some rows were written before it had {', '.join(needed)}; leave the run that made them "
        "out of scope with --pipeline or --run, or run its spec again with a new store"
    )
