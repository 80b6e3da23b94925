"""Reading the images of a published index: which, in what order, how far ahead, and what a fault becomes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.files import Files
from cluster.image_reader import AHEAD_IMAGES, ImageReader
from schemas.errors import DamagedPart, KeyMissing, StoreUnreachable
from tests.indexing import Indexed, index
from tests.pictures import fill_folder, half_a_jpeg, jpeg

# 24 files: every sixth is cut off, and number 7 k + 1 repeats number 1
FILES = {f"{i:02d}.jpg": half_a_jpeg(i) if i % 6 == 5 else jpeg(1 if i % 7 == 1 else i) for i in range(24)}
USABLE = [i for i in range(24) if i % 6 != 5 and (i % 7 != 1 or i == 1)]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    root = fill_folder(tmp_path_factory.mktemp("images"), FILES)
    return index(tmp_path_factory.mktemp("store"), f"folder:{root}", shard_rows=5)


@pytest.fixture
def changed(tmp_path: Path) -> Indexed:
    """An index of its own, whose files a test may change afterwards."""
    return index(tmp_path / "s", f"folder:{fill_folder(tmp_path / 'x', FILES)}", shard_rows=5)


class Watched(Files):
    """The real files, counting who reads what; `trouble` is called before each read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.lock = threading.Lock()

    def read(self, uri: str) -> bytes:
        with self.lock:
            self.reads.append(Path(uri).name)
        return super().read(uri)


def test_usable_images_come_in_order_with_their_bytes(indexed: Indexed) -> None:
    images = list(indexed.inputs.images(indexed.plan.digest, 0, 24))
    assert [image.image_index for image in images] == USABLE
    assert [image.data for image in images] == [FILES[f"{i:02d}.jpg"] for i in USABLE]
    ids = {row["image_index"]: row["image_id"] for row in indexed.rows()}
    assert [image.image_id for image in images] == [ids[i] for i in USABLE]
    assert [Path(image.uri).name for image in images] == [f"{i:02d}.jpg" for i in USABLE]


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 1), (4, 6), (5, 6), (5, 10), (9, 21), (23, 24), (24, 30)])
def test_a_range_is_that_part_of_the_whole_across_the_parts_of_the_index(
    indexed: Indexed, start: int, stop: int
) -> None:
    images = indexed.inputs.images(indexed.plan.digest, start, stop)
    assert [image.image_index for image in images] == [i for i in USABLE if start <= i < stop]


def test_a_range_reads_only_its_own_files(indexed: Indexed) -> None:
    files = Watched()
    list(ImageReader(indexed.store, files).images(indexed.plan.digest, 6, 11))
    assert sorted(files.reads) == ["06.jpg", "07.jpg", "09.jpg", "10.jpg"]


def test_bytes_that_changed_are_a_checksum_problem_and_the_others_are_untouched(
    changed: Indexed, tmp_path: Path
) -> None:
    damaged = bytearray(FILES["03.jpg"])
    damaged[-20] ^= 1
    fill_folder(tmp_path / "x", {"03.jpg": bytes(damaged)})
    files = Watched()
    images = {i.image_index: i for i in ImageReader(changed.store, files).images(changed.plan.digest, 0, 24)}
    assert (images[3].data, images[3].problem) == (None, "checksum")
    assert [i for i in USABLE if images[i].problem is None] == [i for i in USABLE if i != 3]
    assert files.reads.count("03.jpg") == 2  # once more, in case the first answer was damaged on its way
    assert len(files.reads) == len(USABLE) + 1


def test_an_answer_that_is_damaged_once_is_read_again_and_used(indexed: Indexed) -> None:
    class DamagedOnce(Watched):
        def read(self, uri: str) -> bytes:
            data = super().read(uri)
            return data[: len(data) // 2] if self.reads.count(Path(uri).name) == 1 else data

    images = list(ImageReader(indexed.store, DamagedOnce()).images(indexed.plan.digest, 0, 24))
    assert [image.data for image in images] == [FILES[f"{i:02d}.jpg"] for i in USABLE]


def test_a_file_that_is_gone_is_missing(changed: Indexed, tmp_path: Path) -> None:
    (tmp_path / "x" / "04.jpg").unlink()
    images = {i.image_index: i for i in changed.inputs.images(changed.plan.digest, 0, 24)}
    assert (images[4].data, images[4].problem) == (None, "missing")
    assert [images[i].problem for i in USABLE if i != 4] == [None] * (len(USABLE) - 1)


def test_a_store_that_is_away_is_an_error_and_never_a_skipped_image(indexed: Indexed) -> None:
    class Away(Watched):
        def read(self, uri: str) -> bytes:
            if uri.endswith("09.jpg"):
                raise StoreUnreachable("away")
            return super().read(uri)

    images = ImageReader(indexed.store, Away()).images(indexed.plan.digest, 0, 24)
    seen = []
    with pytest.raises(StoreUnreachable):
        seen.extend(image.image_index for image in images)
    assert all(i < 9 for i in seen)


def test_no_more_than_a_bounded_number_of_images_is_read_ahead(tmp_path: Path) -> None:
    count = AHEAD_IMAGES + 100
    root = fill_folder(tmp_path / "x", {f"{i:04d}.pgm": b"P5\n2 1\n255\n" + i.to_bytes(2, "big") for i in range(count)})
    found = index(tmp_path / "s", f"folder:{root}")
    files = Watched()
    images = ImageReader(found.store, files).images(found.plan.digest, 0, count)
    next(images)
    time.sleep(0.3)
    assert len(files.reads) <= AHEAD_IMAGES + 1
    assert len(list(images)) == count - 1
    assert len(files.reads) == count


def test_an_index_that_is_not_there_is_named(indexed: Indexed) -> None:
    with pytest.raises(KeyMissing, match="0123456789"):
        list(indexed.inputs.images("0123456789", 0, 1))


@pytest.mark.parametrize("damage", ["delete", "cut", "fewer rows"])
def test_a_damaged_part_of_the_index_is_an_error_and_not_fewer_images(changed: Indexed, damage: str) -> None:
    key = changed.store.list("tables/images")[2]
    path = Path(changed.store.url(key))
    if damage == "delete":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        pq.write_table(pq.read_table(path, partitioning=None).slice(1), path)
    with pytest.raises(DamagedPart, match=path.name):
        list(changed.inputs.images(changed.plan.digest, 0, 24))


def test_containers_that_were_replaced_are_checksum_problems(tmp_path: Path) -> None:
    path = tmp_path / "x" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"image": [jpeg(0), jpeg(1)]}), path)
    found = index(tmp_path / "s", f"parquet:{path}")
    pq.write_table(pa.table({"image": [jpeg(0)]}), path)
    images = list(ImageReader(found.store, Files()).images(found.plan.digest, 0, 2))
    assert [(image.data, image.problem) for image in images] == [(jpeg(0), None), (None, "checksum")]
    path.write_bytes(b"no longer a table")
    images = list(ImageReader(found.store, Files()).images(found.plan.digest, 0, 2))
    assert [image.problem for image in images] == ["checksum"] * 2
    path.unlink()
    images = list(ImageReader(found.store, Files()).images(found.plan.digest, 0, 2))
    assert [image.problem for image in images] == ["missing"] * 2
