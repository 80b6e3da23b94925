"""What a part may find on its key, and what it never accepts."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cluster.parquet import PartEncoder
from cluster.parts import create_verified, same_rows
from cluster.stores.posix import PosixStore
from schemas.errors import TableMismatch
from schemas.tables import get_table
from tests.damage import DamagingStore, turn_bit
from tests.rows import make_rows

KEYS = ["part.parquet", "part.a1.parquet", "part.a2.parquet"]


def embeddings(n: int = 300, width: int = 64, seed: int = 0) -> pa.RecordBatch:
    """Rows with random vectors, which a turned bit changes only a little."""
    rows = make_rows("embeddings", n)
    numbers = np.random.default_rng(seed).standard_normal(n * width, np.float32)
    vectors = pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * width), pa.array(numbers))
    place = rows.schema.get_field_index("embedding")
    return rows.set_column(place, rows.schema.field(place), vectors.cast(rows.schema.field(place).type))


def encode(rows: pa.RecordBatch) -> bytes:
    encoder = PartEncoder(get_table("embeddings"))
    encoder.add(rows)
    (part,) = encoder.finish()
    return part.read()


@pytest.fixture
def ours() -> bytes:
    return encode(embeddings())


def test_what_reads_back_otherwise_than_it_was_written_goes_to_the_next_key(tmp_path: Path, ours: bytes) -> None:
    store = DamagingStore(str(tmp_path), damaged_writes=2)
    assert create_verified(store, KEYS, ours, same_rows) == (KEYS[2], ours)
    assert [store.get(key) == ours for key in KEYS] == [False, False, True]  # nothing is deleted or overwritten


def test_a_store_that_damages_every_write_is_an_error_that_names_it(tmp_path: Path, ours: bytes) -> None:
    with pytest.raises(TableMismatch, match=r"part\.parquet and 2 later keys.*damages objects"):
        create_verified(DamagingStore(str(tmp_path), damaged_writes=9), KEYS, ours, same_rows)


def test_the_same_rows_of_another_worker_are_taken_with_the_bytes_they_have(tmp_path: Path, ours: bytes) -> None:
    """Another kernel rounds in another way: the last bit of a vector is no other row."""
    store, rows = PosixStore(str(tmp_path)), embeddings()
    norms = pc.multiply(rows["norm"], 1 + 2**-20).cast(rows.schema.field("norm").type)
    place = rows.schema.get_field_index("norm")
    theirs = encode(rows.set_column(place, rows.schema.field(place), norms))
    assert theirs != ours
    store.create(KEYS[0], theirs)
    assert create_verified(store, KEYS, ours, same_rows) == (KEYS[0], theirs)
    assert store.list("") == KEYS[:1]


@pytest.mark.parametrize("theirs", ["fewer rows", "other ids", "another table", "half of it", "nothing"])
def test_what_is_not_the_same_rows_is_left_where_it_is(tmp_path: Path, ours: bytes, theirs: str) -> None:
    store, rows = PosixStore(str(tmp_path)), embeddings()
    ids = pa.array([f"{i:032x}" for i in range(rows.num_rows)])
    place = rows.schema.get_field_index("image_id")
    found = {
        "fewer rows": lambda: encode(rows.slice(0, 200)),
        "other ids": lambda: encode(rows.set_column(place, rows.schema.field(place), ids)),
        "another table": lambda: write(pa.table({"a": [1]})),
        "half of it": lambda: ours[: len(ours) // 2],
        "nothing": lambda: b"",
    }[theirs]()
    store.create(KEYS[0], found)
    assert create_verified(store, KEYS, ours, same_rows) == (KEYS[1], ours)
    assert store.get(KEYS[0]) == found


def write(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_a_turned_bit_in_a_vector_is_not_the_same_rows(ours: bytes) -> None:
    """Floats are not compared, so it is the checksum of the page that says so, wherever in the page the bit is."""
    group = pq.read_metadata(io.BytesIO(ours)).row_group(0)
    (column,) = (group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema.startswith("emb"))
    first, last = (
        column.data_page_offset + 128,
        column.data_page_offset + column.total_compressed_size,
    )  # past its header
    for place in np.random.default_rng(0).integers(first, last, 50).tolist():
        assert not same_rows(turn_bit(ours, place), ours), place
