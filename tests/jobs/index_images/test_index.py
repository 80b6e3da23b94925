"""The index of folders: every kind of image and file a folder may hold, and what it says about them."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.files import Files
from cluster.listing import load_listing, plan_index
from cluster.stores.base import make_store
from jobs.index_images.plan import READ, estimate, make_plan
from jobs.index_images.sources import canonical_images
from jobs.protocol import Known
from schemas.cells import Images
from schemas.errors import BadRef, EmptyImageSet
from tests.indexing import Indexed, ShardFailed, index, run_index
from tests.pictures import bomb, encode, fill_folder, half_a_jpeg, jpeg, noise, with_orientation

MIXED = {
    "a.jpg": jpeg(1),
    "b/again.jpg": jpeg(1),
    "b/empty.png": b"",
    "b/text.jpg": b"I am a text file",
    "c/cut.jpg": half_a_jpeg(),
    "c/huge.png": bomb(),
    "c/turned.png": with_orientation(6),
    "d/Ünï cödé #1, 日本.JPG": jpeg(2),
    "d/space in name.png": encode(noise(3)),
    "e/one.png": encode(noise(4, 1, 1)),
    "e/yet again.jpg": jpeg(1),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    root = fill_folder(tmp_path_factory.mktemp("mixed"), {**MIXED, "readme.txt": b"hello", ".hidden.jpg": jpeg(9)})
    fill_folder(root, {".cache/x.jpg": jpeg(9)})
    return index(tmp_path_factory.mktemp("store"), f"folder:{root}", shard_rows=2)


def test_every_image_file_is_one_row_and_hidden_and_other_files_are_none(mixed: Indexed) -> None:
    root = mixed.plan.stage.subject.removeprefix("folder:")
    found = {row["uri"]: row["image_index"] for row in mixed.rows() + mixed.rows("bad_inputs")}
    assert found == {f"{root}/{name}": i for i, name in enumerate(sorted(MIXED))}


def test_bad_files_are_rows_of_bad_inputs_with_reason_and_detail(mixed: Indexed) -> None:
    rows = {row["uri"].rpartition("/")[2]: row for row in mixed.rows("bad_inputs")}
    assert {name: row["reason"] for name, row in rows.items()} == {
        "empty.png": "empty",
        "text.jpg": "not_an_image",
        "cut.jpg": "truncated",
        "huge.png": "too_large",
    }
    assert "14000 x 14000" in rows["huge.png"]["detail"] or "header" in rows["huge.png"]["detail"]
    assert rows["text.jpg"]["image_id"] == hashlib.sha256(MIXED["b/text.jpg"]).hexdigest()[:32]


def test_an_image_row_tells_id_size_dimensions_and_a_thumbnail(mixed: Indexed) -> None:
    row = next(row for row in mixed.rows() if row["uri"].endswith("turned.png"))
    data = MIXED["c/turned.png"]
    assert row["sha256"] == hashlib.sha256(data).hexdigest()
    assert row["image_id"] == row["sha256"][:32]
    assert (row["bytes"], row["width"], row["height"], row["format"]) == (len(data), 2, 3, "PNG")
    assert Image.open(io.BytesIO(row["thumbnail"])).size == (2, 3)
    assert (row["label"], row["caption"], row["attributes"]) == (None, None, [])


def test_repeated_bytes_are_one_image_and_the_later_rows_name_the_first(mixed: Indexed) -> None:
    originals = {row["uri"].rpartition("/")[2]: row["duplicate_of"] for row in mixed.rows() if row["duplicate_of"]}
    first = mixed.plan.stage.subject.removeprefix("folder:") + "/a.jpg"
    assert originals == {"again.jpg": first, "yet again.jpg": first}


def test_the_facts_count_rows_and_usable_images(mixed: Indexed) -> None:
    # 11 files, of which 4 are bad and 2 repeat
    assert (mixed.facts.rows, mixed.facts.usable, mixed.facts.stage) == (11, 5, mixed.plan.digest)


def test_the_run_says_what_is_set_aside(mixed: Indexed) -> None:
    notes = [note for event in mixed.events for note in event.get("notes", ())]
    assert notes == ["11 images, of which 4 cannot be used and 2 repeat others"]


@pytest.mark.parametrize(("shard_rows", "threads"), [(1, 1), (3, 4), (100, 3)])
def test_rows_and_content_do_not_depend_on_how_the_work_is_cut(
    mixed: Indexed, tmp_path: Path, shard_rows: int, threads: int
) -> None:
    other = index(tmp_path, mixed.plan.stage.subject, shard_rows=shard_rows, threads=threads)
    assert other.plan.rounds[READ].n_shards == -(-11 // shard_rows)
    for table in ("images", "bad_inputs"):
        assert other.rows(table, stage=True) == mixed.rows(table, stage=True)
    assert other.facts == mixed.facts


def test_an_index_that_is_published_is_not_made_again(mixed: Indexed) -> None:
    again = index(Path(mixed.store.uri), mixed.plan.stage.subject)
    assert [event["event"] for event in again.events if event["event"] != "planned"] == ["cached"]


def test_content_follows_bytes_and_order_and_not_times_paths_or_labels(tmp_path: Path) -> None:
    root = fill_folder(tmp_path / "x", {"k/a.jpg": jpeg(1), "k/b.jpg": jpeg(2)})
    first = index(tmp_path / "s", f"folder:{root}")
    os.utime(root / "k/a.jpg", (1, 1))
    touched = index(tmp_path / "s", f"folder:{root}")
    assert touched.plan.digest != first.plan.digest
    assert touched.facts.content == first.facts.content
    moved = fill_folder(tmp_path / "y", {"1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    assert index(tmp_path / "s", f"folder:{moved}").facts.content == first.facts.content
    labelled = index(tmp_path / "s", f"folder:{root}", labels="from_folders")
    assert labelled.plan.digest != touched.plan.digest
    assert labelled.facts.content == first.facts.content
    swapped = fill_folder(tmp_path / "z", {"1.jpg": jpeg(2), "2.jpg": jpeg(1)})
    other = [
        index(tmp_path / "s", f"folder:{swapped}"),
        index(tmp_path / "s", f"folder:{root}", orientation="as_stored"),
        index(tmp_path / "s", f"folder:{fill_folder(tmp_path / 'w', {'a.jpg': jpeg(1)})}"),
    ]
    assert len({first.facts.content, *(o.facts.content for o in other)}) == 4


def test_as_stored_ignores_the_orientation(tmp_path: Path) -> None:
    root = fill_folder(tmp_path / "x", {"t.png": with_orientation(6)})
    row = index(tmp_path / "s", f"folder:{root}", orientation="as_stored").rows()[0]
    assert (row["width"], row["height"]) == (3, 2)


def test_labels_come_from_the_first_folder_below_the_root(tmp_path: Path) -> None:
    files = {"cat/a.jpg": jpeg(1), "cat/deep/b.jpg": jpeg(2), "dog/a.jpg": jpeg(3), "top.jpg": jpeg(4)}
    root = fill_folder(tmp_path / "x", files)
    assert index(tmp_path / "s", f"folder:{root}", labels="from_folders").column("label") == ["cat", "cat", "dog", None]
    found = index(tmp_path / "s", f"glob:{root}/*/**/*.jpg", labels="from_folders")
    assert found.column("label") == ["cat", "cat", "dog"]


def test_the_same_bytes_keep_both_labels(tmp_path: Path) -> None:
    root = fill_folder(tmp_path / "x", {"cat/a.jpg": jpeg(1), "dog/a.jpg": jpeg(1)})
    rows = index(tmp_path / "s", f"folder:{root}", labels="from_folders").rows()
    assert [(row["label"], row["duplicate_of"]) for row in rows] == [("cat", None), ("dog", f"{root}/cat/a.jpg")]


CSV = """file,label,caption,weight,note
cat/a.jpg,007,"a cat, asleep",1.50,
./b.jpg,cat,,2,"two
lines"
gone.jpg,cat,,,
"""


def test_a_labels_file_is_joined_by_path_or_name_and_other_columns_become_text(tmp_path: Path) -> None:
    root = fill_folder(tmp_path / "x", {"cat/a.jpg": jpeg(1), "dog/b.jpg": jpeg(2), "dog/c.jpg": jpeg(3)})
    fill_folder(tmp_path, {"labels.csv": b"\xef\xbb\xbf" + CSV.encode()})
    found = index(tmp_path / "s", f"folder:{root}", labels=f"file:{tmp_path}/labels.csv")
    assert found.column("label") == ["007", "cat", None]
    assert found.column("caption") == ["a cat, asleep", None, None]
    assert found.column("attributes") == [[("weight", "1.50")], [("note", "two\nlines"), ("weight", "2")], []]
    notes = [note for event in found.events for note in event.get("notes", ())]
    assert notes[1] == "the labels file names 2 of them; 1 are not in it, and 1 of its rows name none"


def test_a_parquet_labels_file_says_the_same(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = fill_folder(tmp_path / "x", {"a.jpg": jpeg(1), "b.jpg": jpeg(2)})
    columns = {
        "file": ["b.jpg", "a.jpg"],
        "label": [3, 4],
        "good": [True, None],
        "tags": [["x", "y"], []],
        "score": [0.5, float("nan")],
    }
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    found = index(tmp_path / "s", f"folder:{root}", labels=f"file:{tmp_path}/labels.parquet")
    assert found.column("label") == ["4", "3"]
    # a number that is none is no text: it would become a concept of its own
    assert found.column("attributes") == [
        [("tags", "[]")],
        [("good", "true"), ("score", "0.5"), ("tags", '["x", "y"]')],
    ]


def test_a_labels_name_that_fits_two_images_stops_the_index(tmp_path: Path) -> None:
    root = fill_folder(tmp_path / "x", {"k/a.jpg": jpeg(1), "l/a.jpg": jpeg(2)})
    fill_folder(tmp_path, {"labels.csv": b"file,label\na.jpg,cat\n"})
    with pytest.raises(ShardFailed, match=f"'a.jpg' could be {root}/k/a.jpg or {root}/l/a.jpg") as caught:
        index(tmp_path / "s", f"folder:{root}", labels=f"file:{tmp_path}/labels.csv")
    assert caught.value.error == "BadRef"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.jpg,cat\n", "no column 'file'; found name, label"),
        ("file,label\na.jpg,cat\n./a.jpg,dog\n", "'a.jpg' is named twice"),
        ("file,label\na.jpg\n", "1 cells in"),
        ("", "no column 'file'"),
        ("file,label\n", "has no rows"),
        ("file,label\nz.jpg,cat\n", "none of its 1 rows names an image of .* holds 'z.jpg', an image is 'a.jpg'"),
    ],
)
def test_a_labels_file_that_cannot_fit_is_refused_before_any_work(tmp_path: Path, text: str, message: str) -> None:
    root = fill_folder(tmp_path / "x", {"a.jpg": jpeg(1)})
    fill_folder(tmp_path, {"labels.csv": text.encode()})
    with pytest.raises(BadRef, match=message):
        index(tmp_path / "s", f"folder:{root}", labels=f"file:{tmp_path}/labels.csv")
    assert not list((tmp_path / "s").glob("stages/*"))


def test_a_labels_file_that_changes_after_planning_stops_the_work(tmp_path: Path) -> None:
    from jobs.index_images.texts import read_labels
    from schemas.errors import ImageChanged

    fill_folder(tmp_path, {"labels.csv": CSV.encode()})
    _, sha256 = read_labels(f"{tmp_path}/labels.csv", Files())
    fill_folder(tmp_path, {"labels.csv": CSV.replace("007", "008").encode()})
    with pytest.raises(ImageChanged, match="changed since the plan"):
        read_labels(f"{tmp_path}/labels.csv", Files(), sha256)


def test_an_empty_or_missing_set_is_one_clear_error_before_any_work(tmp_path: Path) -> None:
    fill_folder(tmp_path / "x", {"readme.txt": b"", "archive.zip": b"PK"})
    for ref, error, words in (
        (f"folder:{tmp_path}/x", EmptyImageSet, r"no files that end in \.jpg"),
        (f"folder:{tmp_path}/nowhere", BadRef, "is not a file or folder"),
        (f"folder:{tmp_path}/x/readme.txt", BadRef, "one file; expected a folder"),
        (f"glob:{tmp_path}/x/*.jpg", EmptyImageSet, "no files that match"),
        (f"wds:{tmp_path}/x", EmptyImageSet, r"\.tar"),
        (f"parquet:{tmp_path}/x", EmptyImageSet, r"\.parquet"),
        (f"hf:{tmp_path}/x", BadRef, "state.json"),
        (f"hf:{tmp_path}/nowhere", BadRef, "datasets.save_to_disk"),
    ):
        with pytest.raises(error, match=words):
            index(tmp_path / "s", ref)
    assert not list((tmp_path / "s").rglob("*.json"))


def test_labels_from_folders_are_refused_where_there_are_no_folders() -> None:
    with pytest.raises(BadRef, match="from_folders"):
        canonical_images(Images(ref="world:seed=0,n=5", labels="from_folders"))


def test_a_file_that_vanishes_after_listing_fails_its_shard_and_only_that(tmp_path: Path) -> None:
    root = fill_folder(tmp_path / "x", {"a.jpg": jpeg(1), "b.jpg": jpeg(2), "c.jpg": jpeg(3)})
    store = make_store(str(tmp_path / "s"))
    plan = plan_index(Files(), Images(ref=f"folder:{root}"), shard_rows=1).freeze(store)
    (root / "b.jpg").unlink()
    board = run_index(store, plan)
    assert [outcome.error for outcome in board.failed.values()] == ["KeyMissing"]
    assert "b.jpg was there when the image set was listed" in next(iter(board.failed.values())).message
    done = [key.rpartition("/")[2] for key in store.list(f"stages/{plan.digest}/shards/") if "done" in key]
    assert done == ["00000.done.json", "00002.done.json"]


def test_a_file_that_changes_its_size_after_listing_fails_its_shard(tmp_path: Path) -> None:
    root = fill_folder(tmp_path / "x", {"a.jpg": jpeg(1)})
    store = make_store(str(tmp_path / "s"))
    plan = plan_index(Files(), Images(ref=f"folder:{root}")).freeze(store)
    fill_folder(root, {"a.jpg": jpeg(1) + b"\0"})
    assert [outcome.error for outcome in run_index(store, plan).failed.values()] == ["ImageChanged"]


def test_loops_of_links_end_and_each_real_folder_counts_once(tmp_path: Path) -> None:
    root = fill_folder(tmp_path / "x", {"a/1.jpg": jpeg(1), "b/2.jpg": jpeg(2)})
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "self").symlink_to(root / "b")
    assert index(tmp_path / "s", f"folder:{root}").facts.rows == 2


def test_a_name_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    from schemas.errors import UnsafeName

    root = fill_folder(tmp_path / "x", {"a.jpg": jpeg(1)})
    with open(os.fsencode(root) + b"/\xff.jpg", "wb") as file:
        file.write(jpeg(2))
    with pytest.raises(UnsafeName, match="UTF-8"):
        index(tmp_path / "s", f"folder:{root}")


def test_a_relative_folder_is_planned_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_folder(tmp_path / "photos", {"a.jpg": jpeg(1)})
    monkeypatch.chdir(tmp_path)
    assert canonical_images(Images(ref="folder:photos/../photos/")).ref == f"folder:{tmp_path}/photos"
    assert canonical_images(Images(ref="folder:s3://bucket/a/")).ref == "folder:s3://bucket/a"


def test_the_plan_is_pure_and_its_digest_follows_only_what_decides_the_result() -> None:
    images = Images(ref="folder:/x", orientation="upright")
    plan = make_plan(images, "0" * 64, 1000)
    assert plan == make_plan(images, "0" * 64, 1000)
    assert [r.n_shards for r in plan.rounds] == [2, 1, 2]  # 512 files in a shard
    assert make_plan(images, "0" * 64, 1000, shard_rows=10).digest == plan.digest
    assert make_plan(images.model_copy(update={"limit": 5}), "0" * 64, 1000).digest == plan.digest
    others = [
        make_plan(images, "1" * 64, 1000),
        make_plan(images.model_copy(update={"orientation": "as_stored"}), "0" * 64, 1000),
        make_plan(images.model_copy(update={"labels": "from_folders"}), "0" * 64, 1000),
        make_plan(images, "0" * 64, 1000, labels_sha256="2" * 64),
    ]
    assert len({plan.digest, *(other.digest for other in others)}) == 5
    assert estimate(plan, Known({}, {})).images == 1000


def test_the_listing_is_frozen_once_by_its_content(tmp_path: Path) -> None:
    root = fill_folder(tmp_path / "x", {"b.jpg": jpeg(2), "a.png": encode(noise(1))})
    store = make_store(str(tmp_path / "s"))
    plans = [plan_index(Files(), Images(ref=f"folder:{root}")).freeze(store) for _ in range(2)]
    assert plans[0] == plans[1]
    assert len(store.list("listings")) == 1
    rows = load_listing(store, str(plans[0].stage.params["listing"])).to_pylist()
    assert [(Path(row["uri"]).name, row["size"]) for row in rows] == [
        ("a.png", len(encode(noise(1)))),
        ("b.jpg", len(jpeg(2))),
    ]


def test_the_content_is_the_hash_of_the_ordered_ids(mixed: Indexed) -> None:
    rows = sorted(mixed.rows() + mixed.rows("bad_inputs"), key=lambda row: row["image_index"])
    text = "".join(row["image_id"] + ("-" if "reason" in row else "+") for row in rows)
    ids = hashlib.sha256(text.encode()).hexdigest()
    wanted = {"decoding": 1, "ids": ids, "orientation": "upright", "rows": 11, "usable": 5}
    data = json.dumps(wanted, sort_keys=True, separators=(",", ":")).encode()
    assert mixed.facts.content == hashlib.sha256(data).hexdigest()


def test_many_equal_pixels_in_different_files_are_not_duplicates(tmp_path: Path) -> None:
    same = np.zeros((8, 8, 3), np.uint8)
    root = fill_folder(tmp_path / "x", {"a.png": encode(same), "b.bmp": encode(same, "BMP")})
    assert index(tmp_path / "s", f"folder:{root}").facts.usable == 2
