"""Ranges of rows from published parts: the right rows, and no more bytes than the row groups that hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.inputs import StoreInputs
from cluster.ledger import load_published
from cluster.range_reader import RangeReader
from cluster.stores.base import Store, make_store
from schemas.errors import DamagedPart, KeyMissing
from tests.activations import ImageRows, make_images, make_stage, publish_activations

TOKENS, WIDTH, N_IMAGES = 3, 8, 400
GROUP_BYTES = 1 << 12


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[ImageRows]]:
    """400 images, 3 tokens each, in 4 parts of several row groups."""
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    images = list(make_images(N_IMAGES, TOKENS, WIDTH))
    publish_activations(store, make_stage(), images, shard_rows=100, group_bytes=GROUP_BYTES)
    return store, images


def read(store: Store, ranges: list[tuple[int, int]], columns: list[str] | None = None) -> pa.Table:
    batches = list(StoreInputs(store).table(make_stage().digest, "activations", columns, ("image_index", ranges)))
    return pa.Table.from_batches(batches)


def parts_of(store: Store) -> list[Path]:
    published = load_published(store, make_stage().digest)
    assert published is not None
    return [Path(store.url(part.key)) for part in published.tables["activations"]]


def holding(store: Store, start: int, stop: int) -> int:
    """Row groups with an image in [start, stop), counted from their rows."""
    files = [pq.ParquetFile(path) for path in parts_of(store)]
    groups = [file.read_row_group(i, ["image_index"]) for file in files for i in range(file.num_row_groups)]
    return sum(any(start <= i < stop for i in group["image_index"].to_pylist()) for group in groups)


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 400)],
        [(18, 19)],
        [(0, 1), (399, 400)],
        [(95, 105)],
        [(250, 300), (10, 20), (100, 101)],
        [(i, i + 1) for i in range(0, 400, 9)],
    ],
)
def test_the_rows_are_those_of_a_filter_over_everything(lake, ranges) -> None:
    store, images = lake
    found = read(store, ranges)
    expected = [(i, values) for i, values in images if any(start <= i < stop for start, stop in ranges)]
    assert found["image_index"].to_pylist() == [i for i, _ in expected for _ in range(TOKENS)]
    values = np.array(found["act"].to_pylist(), np.float32)
    np.testing.assert_array_equal(values, np.concatenate([values for _, values in expected]))


def test_columns_come_as_asked_for_with_or_without_the_one_of_the_range(lake) -> None:
    assert read(lake[0], [(5, 9)], ["token"]).column_names == ["token"]
    assert read(lake[0], [(5, 9)], ["act", "image_index"]).column_names == ["act", "image_index"]


def test_a_range_without_rows_reads_nothing(lake, monkeypatch) -> None:
    store, _ = lake
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *_, **__: pytest.fail("read"))
    inputs = StoreInputs(store)
    assert list(inputs.table(make_stage().digest, "activations", None, ("image_index", [(400, 900)]))) == []
    assert list(inputs.table(make_stage().digest, "activations", None, ("image_index", []))) == []


def test_only_the_row_groups_that_hold_the_range_are_read_and_each_once(lake, monkeypatch) -> None:
    store, _ = lake
    expected = holding(store, 94, 101)
    taken: list[int] = []
    real = pq.ParquetFile.read_row_group

    def counting(self: pq.ParquetFile, group: int, columns: list[str], **options: bool) -> pa.Table:
        taken.append(self.metadata.row_group(group).num_rows)
        assert columns == ["token", "image_index"]
        return real(self, group, columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    inputs = StoreInputs(store)
    total = sum(pq.read_metadata(path).num_row_groups for path in parts_of(store))
    assert total >= 16

    def groups(ranges: list[tuple[int, int]]) -> int:
        taken.clear()
        list(inputs.table(make_stage().digest, "activations", ["token"], ("image_index", ranges)))
        return len(taken)

    assert groups([(0, 1)]) == 1
    assert groups([(0, 1), (2, 3), (5, 6)]) == 1  # they share one
    assert groups([(94, 101)]) == expected < 6
    assert groups([(0, 400)]) == total


def test_footers_are_read_once(lake, monkeypatch) -> None:
    inputs = StoreInputs(lake[0])
    list(inputs.table(make_stage().digest, "activations", ["token"], ("image_index", [(0, 1)])))
    monkeypatch.setattr(RangeReader, "_footer", lambda *_: pytest.fail("read again"))
    list(inputs.table(make_stage().digest, "activations", ["token"], ("image_index", [(300, 310)])))


def test_rows_that_are_no_neighbours_come_all_the_same(tmp_path) -> None:
    """Parts in which the column goes up and down, as no kind of ours writes them."""
    store = make_store(str(tmp_path))
    generator = np.random.default_rng(0)
    images = [(int(i), np.full((2, 4), i, np.float32)) for i in generator.permutation(100)]
    publish_activations(store, make_stage(), images, shard_rows=100, group_bytes=1 << 10)
    found = read(store, [(20, 24), (60, 61)])
    expected = [i for i, _ in images if 20 <= i < 24 or i == 60 for _ in range(2)]
    assert found["image_index"].to_pylist() == expected
    assert [row[0] for row in found["act"].to_pylist()] == expected


@pytest.mark.parametrize("damage", ["gone", "flipped", "cut", "other"])
def test_a_damaged_part_is_an_error_that_names_it(tmp_path, damage) -> None:
    store = make_store(str(tmp_path))
    publish_activations(store, make_stage(), list(make_images(200, 8, 16)), shard_rows=100)
    _, second = parts_of(store)
    data = bytearray(second.read_bytes())
    if damage == "gone":
        second.unlink()
    elif damage == "flipped":
        data[len(data) // 3] ^= 1
        second.write_bytes(bytes(data))
    elif damage == "cut":
        second.write_bytes(bytes(data[:-10]))
    else:
        second.write_bytes(pq_of_one_row(tmp_path))
    with pytest.raises(DamagedPart, match=f"{second.name}.*restore it"):
        read(store, [(150, 160)])


def pq_of_one_row(folder: Path) -> bytes:
    """A sound file that is not the one that was published."""
    pq.write_table(pa.table({"image_index": pa.array([1], pa.int64())}), folder / "one.parquet")
    return (folder / "one.parquet").read_bytes()


def test_a_stage_that_is_not_published_is_an_error(tmp_path) -> None:
    with pytest.raises(KeyMissing, match="has published no table activations"):
        read(make_store(str(tmp_path)), [(0, 1)])
