"""Rows to Parquet bytes: what the bytes depend on, where parts end, what is refused, which settings are in the file."""

from __future__ import annotations

import io
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import parquet
from cluster.parquet import PartEncoder, read_part
from schemas.columns import Table
from schemas.errors import StoreFull, TableMismatch
from schemas.tables import TABLES, get_table
from tests.rows import make_rows

SELFTEST = get_table("selftest")


def encode(table: str, batches: Sequence[pa.RecordBatch], **options: int) -> list[tuple[bytes, int]]:
    encoder = PartEncoder(get_table(table), **options)
    for batch in batches:
        encoder.add(batch)
    return [(part.read(), part.rows) for part in encoder.finish()]


def cut(batch: pa.RecordBatch, sizes: Sequence[int]) -> list[pa.RecordBatch]:
    """The same rows in batches of these sizes; the last takes what is left."""
    edges = [0, *np.cumsum(sizes).tolist()]
    return [batch.slice(a, b - a) for a, b in itertools.pairwise(edges)] + [batch.slice(edges[-1])]


def wide_rows(n: int, width: int) -> pa.RecordBatch:
    """Rows of `activations` with random vectors of this width."""
    rows = make_rows("activations", n)
    numbers = np.random.default_rng(0).standard_normal(n * width, np.float32)
    vectors = pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * width), pa.array(numbers))
    columns = [*rows.columns[:-1], vectors.cast(rows.schema.field("act").type)]
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)


def fresh(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Equal rows in memory of their own, as another worker would have made them."""
    return pa.RecordBatch.from_pylist(batch.to_pylist(), schema=batch.schema)


# -- the bytes


@pytest.mark.parametrize("table", TABLES)
def test_every_table_reads_back_row_for_row_with_its_schema(table):
    rows = make_rows(table, 50)
    ((data, n),) = encode(table, [rows])
    back = read_part(data)
    assert n == 50 and back.schema.equals(get_table(table).schema)
    assert back.to_pylist() == rows.to_pylist()


@pytest.mark.parametrize("table", ["selftest", "images", "activations", "models"])
def test_the_bytes_depend_on_the_rows_and_not_on_how_they_arrived(table):
    rows = make_rows(table, 1200)
    ((whole, _),) = encode(table, [rows])
    sizes = np.random.default_rng(0).integers(0, 400, 3).tolist()
    for pieces in ([1], [255], [256], [0, 1000, 0], sizes, [1] * 100):
        ((data, n),) = encode(table, [fresh(piece) for piece in cut(rows, pieces)])
        assert n == 1200 and data == whole, pieces


def test_pages_of_wide_vectors_do_not_end_where_batches_did():
    """4,000 vectors of 96 random numbers are 1.5 MB: more than one page of 1 MiB."""
    rows = wide_rows(4000, 96)
    whole, *others = (encode("activations", cut(rows, pieces)) for pieces in ([], [100] * 39, [1500, 1500], [77]))
    assert len(whole[0][0]) > 1 << 20
    assert all(other == whole for other in others)


def test_the_bytes_do_not_depend_on_the_batches_where_many_row_groups_are_cut(monkeypatch):
    """The first 256 rows have 32 bytes of numbers and on average 22.7 of stage; 16,384 bytes have room for 299 of them,
    256 as a power of two. Over the first 300 rows it would be 34 of stage, and 128."""
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 16384)
    stage = pa.array(["a"] * 200 + ["b" * 100] * 800)
    rows = make_rows("selftest", 1000)
    rows = pa.RecordBatch.from_arrays([stage, *rows.columns[1:]], schema=rows.schema)
    results = []
    for pieces in ([], [300, 300], [999], [100] * 9):
        ((data, _),) = encode("selftest", cut(rows, pieces), part_bytes=1 << 20)
        results.append(data)
    meta = pq.read_metadata(io.BytesIO(results[0]))
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [256, 256, 256, 232]
    assert len(set(results)) == 1


def test_a_second_part_begins_where_another_row_group_might_not_fit(monkeypatch):
    """256 rows of a row group fill the smallest part that is allowed, so each group becomes a part."""
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 16384)
    rows = make_rows("selftest", 600)
    parts = encode("selftest", [rows], part_bytes=16384)
    assert [n for _, n in parts] == [256, 256, 88]
    assert [row["row"] for data, _ in parts for row in read_part(data).to_pylist()] == list(range(600))
    assert [n for _, n in encode("selftest", [rows], part_bytes=1 << 20)] == [600]


def test_no_part_is_larger_than_its_limit(monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 1 << 18)
    limit = 1 << 20
    rng = np.random.default_rng(0)
    batches = [
        pa.RecordBatch.from_pydict(
            {
                "stage": [f"{i:020d}"] * 1000,
                "row": np.arange(1000),
                "value": rng.random(1000),
                "vector": rng.random((1000, 4)).tolist(),
            },
            schema=SELFTEST.schema,
        )
        for i in range(80)
    ]
    parts = encode("selftest", batches, part_bytes=limit)
    assert len(parts) > 2 and max(len(data) for data, _ in parts) <= limit
    assert sum(n for _, n in parts) == 80_000


def test_no_rows_make_no_part():
    assert encode("selftest", []) == []
    assert encode("selftest", [make_rows("selftest", 0)]) == []


# -- what is refused


def test_a_batch_of_another_schema_is_refused_and_the_table_named():
    encoder = PartEncoder(SELFTEST)
    with pytest.raises(TableMismatch, match="table selftest: expected"):
        encoder.add(make_rows("selftest_summary", 1))
    nullable = pa.schema([field.with_nullable(True) for field in SELFTEST.schema])
    with pytest.raises(TableMismatch, match="expected"):
        encoder.add(make_rows("selftest", 1).cast(nullable))
    encoder.abandon()


def test_a_null_where_none_may_be_is_refused_and_the_column_named():
    rows = make_rows("images", 3)
    uri = rows.schema.get_field_index("uri")
    columns = [*rows.columns[:uri], pa.array(["a", None, "c"]), *rows.columns[uri + 1 :]]
    encoder = PartEncoder(get_table("images"))
    with pytest.raises(TableMismatch, match="column uri holds nulls"):
        encoder.add(pa.RecordBatch.from_arrays(columns, schema=rows.schema))
    encoder.abandon()


def test_a_null_where_one_may_be_stays_a_null():
    rows = make_rows("images", 4)
    ((data, _),) = encode("images", [rows])
    assert read_part(data, ["label"])["label"].to_pylist() == rows["label"].to_pylist()
    assert None in rows["label"].to_pylist()


def test_an_encoder_that_is_abandoned_ends_its_thread_and_takes_nothing_more():
    encoder = PartEncoder(SELFTEST, capacity=2)
    encoder.add(make_rows("selftest", 10))
    encoder.abandon()
    assert not encoder._thread.is_alive()
    with pytest.raises(TableMismatch):
        encoder.add(make_rows("selftest", 10))


# -- the settings, as the file tells them


def columns_of(table: str, rows: int = 2000) -> dict[str, pq.ColumnChunkMetaData]:
    ((data, _),) = encode(table, [make_rows(table, rows)])
    group = pq.read_metadata(io.BytesIO(data)).row_group(0)
    return {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}


def test_vectors_are_split_by_byte_without_dictionary_or_statistics():
    column = columns_of("activations")["act.list.element"]
    assert column.compression == "ZSTD" and "BYTE_STREAM_SPLIT" in column.encodings
    assert not column.has_dictionary_page and not column.is_stats_set


def test_ids_are_in_a_dictionary_and_numbers_have_statistics():
    columns = columns_of("activations")
    assert columns["image_id"].has_dictionary_page and not columns["image_index"].has_dictionary_page
    statistics = columns["image_index"].statistics
    assert (statistics.min, statistics.max) == (0, 1999)


def test_a_row_group_of_768_wide_vectors_is_4096_rows():
    """One row holds 3,072 bytes of vector and about 100 of ids; 16 MiB have room for 5,000, 4,096 as a power of two."""
    ((data, _),) = encode("activations", [wide_rows(6000, 768)])
    meta = pq.read_metadata(io.BytesIO(data))
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [4096, 6000 - 4096]


# -- where a part waits until it is stored


def test_a_part_beyond_8_mb_waits_in_a_file_and_is_the_same_part(monkeypatch):
    """6,000 rows of 768 random numbers are 18 MB, and random mantissas do not compress to half of it."""
    rows = wide_rows(6000, 768)
    encoder = PartEncoder(get_table("activations"))
    encoder.add(rows)
    (part,) = encoder.finish()
    assert part.file._rolled  # type: ignore[attr-defined]
    data = part.read()
    assert len(data) > parquet.IN_MEMORY_BYTES and part.rows == 6000
    assert read_part(data).equals(pa.Table.from_batches([rows]))
    monkeypatch.setattr(parquet, "IN_MEMORY_BYTES", 1 << 30)
    assert encode("activations", [rows]) == [(data, 6000)]


def error_in_time(
    encoder: PartEncoder, batches: Sequence[pa.RecordBatch], seconds: float = 240
) -> BaseException | None:
    """What handing over and finishing raised; it must come back whatever happened."""
    raised: list[BaseException] = []

    def produce() -> None:
        try:
            for batch in batches:
                encoder.add(batch)
            encoder.finish()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "the producer hangs"
    return raised[0] if raised else None


class FullDisk(io.FileIO):
    """The kernel's own disk without room, slow enough that the queue is full by then."""

    def __init__(self, max_size: int) -> None:
        super().__init__("/dev/full", "w")

    def write(self, data: Any) -> int:
        time.sleep(0.3)
        return super().write(data)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(("batches", "rows"), [(1, 100), (40, 300)])
def test_a_temp_folder_without_room_is_an_error_that_says_where_and_never_a_wait(monkeypatch, batches, rows):
    """100 rows are written after all was handed over, 40 x 300 while the producer waits for room in the queue."""
    monkeypatch.setattr(parquet.tempfile, "SpooledTemporaryFile", FullDisk)
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 16384)
    error = error_in_time(PartEncoder(SELFTEST, capacity=2), [make_rows("selftest", rows)] * batches)
    assert isinstance(error, StoreFull)
    assert tempfile.gettempdir() in str(error) and "TMPDIR" in str(error) and "selftest" in str(error)


def test_a_table_of_pages_has_row_groups_of_its_own_size_whatever_the_batches_and_statistics_of_numbers_alone() -> None:
    table = get_table("explorer_index")
    pages = Table("explorer_index", table.row, table.columns, group_rows=16)
    rows = [
        {column.name: f"{column.name} {n}" if pa.types.is_string(column.type) else n for column in table.columns}
        for n in range(700)
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=table.schema)
    found = []
    for sizes in ([], [1, 299], [256]):
        encoder = PartEncoder(pages)
        for piece in cut(batch, sizes):
            encoder.add(piece)
        found.append([(part.read(), part.rows) for part in encoder.finish()])
    assert found[0] == found[1] == found[2]
    assert [rows for _, rows in found[0]] == [512, 188]  # 32 groups a part
    meta = pq.ParquetFile(io.BytesIO(found[0][0][0])).metadata
    assert {meta.row_group(i).num_rows for i in range(meta.num_row_groups)} == {16}
    group = meta.row_group(1)
    noted = {group.column(i).path_in_schema for i in range(group.num_columns) if group.column(i).is_stats_set}
    assert noted == {column.name for column in table.columns if not pa.types.is_string(column.type)}
