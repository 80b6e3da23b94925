"""Rows to Parquet bytes and back: the measured settings, deterministic row groups, encoding beside the computing."""

from __future__ import annotations

import hashlib
import io
import queue
import threading
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import TableMismatch
from schemas.tables import Table

ROW_GROUP_BYTES = 16 << 20
PART_BYTES = 128 << 20
MAX_ROW_GROUP = 65536
SAMPLE_ROWS = 256


def _settings(table: Table) -> dict[str, object]:
    """zstd-1; vectors split by byte and without dictionary or statistics, ids in a dictionary."""
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
        "store_schema": True,
    }


class PartEncoder:
    """Encodes batches of one table in a thread of its own; `finish` gives the bytes of each part.

    Row groups hold a number of rows that follows from the values of the first rows, so the bytes depend on the rows
    and not on how they arrived. `capacity` bounds the batches waiting to be encoded; a part ends with the row group
    that leaves no room for another one below `part_bytes`.
    """

    def __init__(self, table: Table, capacity: int = 4, part_bytes: int = PART_BYTES) -> None:
        self._table = table
        self._schema = table.schema
        self._full = part_bytes - ROW_GROUP_BYTES
        self._queue: queue.Queue[pa.RecordBatch | None] = queue.Queue(maxsize=capacity)
        self._parts: list[tuple[bytes, int]] = []
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

    def finish(self) -> list[tuple[bytes, int]]:
        """(bytes, rows) of every part; no rows, no part."""
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
        except BaseException as error:
            self._error = error
            while self._queue.get() is not None:
                pass

    def _encode(self) -> None:
        sink, writer, rows = io.BytesIO(), None, 0
        for group in _row_groups(iter(self._queue.get, None), self._schema):
            if writer is None:
                writer = pq.ParquetWriter(sink, self._schema, **_settings(self._table))
            writer.write_table(group, row_group_size=MAX_ROW_GROUP)
            rows += group.num_rows
            if sink.tell() >= self._full:
                writer.close()
                self._parts.append((sink.getvalue(), rows))
                sink, writer, rows = io.BytesIO(), None, 0
        if writer is not None:
            writer.close()
            self._parts.append((sink.getvalue(), rows))


def _row_groups(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in groups of equal size, each in one piece: the writer cuts pages at the joints of its input."""
    waiting: list[pa.RecordBatch] = []
    rows, limit = 0, 0
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


def read_part(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """The rows of one part from its bytes."""
    return pq.read_table(io.BytesIO(data), columns=columns, use_threads=True)
