"""Every source of images gives the same images for the same bytes, with the labels that it carries."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.files import Files
from jobs.index_images.ppm import encode_ppm
from jobs.index_images.sources import canonical_images, list_source, open_source
from miclip_core.images import decode
from miclip_core.world.location import parse_location
from miclip_core.world.render import render
from miclip_core.world.scene import HELD_OUT_INDICES, World, attributes
from miclip_core.world.truth import truth_rows
from schemas.cells import Images
from schemas.errors import BadRef
from schemas.refs import ImageSetRef
from tests.indexing import Indexed, ShardFailed, index
from tests.pictures import encode, fill_folder, half_a_jpeg, jpeg, noise

# Six images: one is cut off and one repeats; the same bytes in the same order for every source.
BYTES = [jpeg(1), encode(noise(2)), half_a_jpeg(), jpeg(1), encode(noise(3), "WEBP"), jpeg(4)]
NAMES = ["0.jpg", "1.png", "2.jpg", "3.jpg", "4.webp", "5.jpg"]
LABELS = [0, 1, 0, 1, 0, 1]
CAPTIONS = [f"picture number {i}" for i in range(6)]
SOURCES = ("folder", "glob", "parquet", "parquet_struct", "wds", "hf")


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def make_tar(path: Path, members: list[tuple[str, bytes]], **options: object) -> None:
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[arg-type]
        for name, data in members:
            add(tar, name, data)


def member_name(uri: str) -> str:
    return unquote(uri.rpartition("#")[2].split(",", 2)[2])


def make_source(kind: str, root: Path) -> str:
    """Write the six images as one kind of source and return its ref."""
    root.mkdir(parents=True, exist_ok=True)
    images = pa.StructArray.from_arrays(
        [pa.array(BYTES, pa.binary()), pa.array(NAMES, pa.string())], names=["bytes", "path"]
    )
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
        "caption": {"dtype": "string", "_type": "Value"},
    }
    if kind in ("folder", "glob"):
        fill_folder(root, dict(zip(NAMES, BYTES)))
        return f"folder:{root}" if kind == "folder" else f"glob:{root}/?.[jpw]*"
    if kind == "parquet":
        table = pa.table({"image": BYTES, "label": LABELS, "caption": CAPTIONS})
        pq.write_table(table.slice(0, 4), root / "0.parquet", row_group_size=3)
        pq.write_table(table.slice(4), root / "1.parquet")
        return f"parquet:{root}"
    if kind == "parquet_struct":
        described = {"huggingface": json.dumps({"info": {"features": features}})}
        table = pa.table({"image": images, "label": LABELS, "caption": CAPTIONS}).replace_schema_metadata(described)
        pq.write_table(table, root / "all.parquet", row_group_size=2)
        return f"parquet:{root}/all.parquet"
    if kind == "wds":
        members = []
        for name, data, label, caption in zip(NAMES, BYTES, LABELS, CAPTIONS):
            key = name.split(".")[0]
            members += [
                (f"{key}.cls", str(label).encode()),
                (name, data),
                (f"{key}.json", json.dumps({"n": 1}).encode()),
            ]
            members += [(f"{key}.txt", caption.encode())]
        make_tar(root / "000.tar", members[:16])
        make_tar(root / "001.tar", members[16:])
        return f"wds:{root}"
    # what datasets.save_to_disk writes: Arrow streams of record batches beside two JSON files
    table = pa.table({"image": images, "label": LABELS, "caption": CAPTIONS})
    for number, rows in enumerate((table.slice(0, 5), table.slice(5))):
        path = str(root / f"data-0000{number}-of-00002.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(rows, max_chunksize=2)
    names = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (root / "state.json").write_text(json.dumps({"_data_files": names}))
    (root / "dataset_info.json").write_text(json.dumps({"features": features}))
    return f"hf:{root}"


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Indexed]:
    store = tmp_path_factory.mktemp("store")
    return {kind: index(store, make_source(kind, tmp_path_factory.mktemp("sets") / kind)) for kind in SOURCES}


def test_the_same_bytes_have_the_same_ids_and_content_in_every_source(indexed: dict[str, Indexed]) -> None:
    columns = ("image_id", "image_index", "sha256", "bytes", "width", "height", "format", "thumbnail")
    wanted = [[row[column] for column in columns] for row in indexed["folder"].rows()]
    assert [row[1] for row in wanted] == [0, 1, 3, 4, 5]
    for kind, found in indexed.items():
        assert [[row[column] for column in columns] for row in found.rows()] == wanted, kind
        assert found.column("image_index", "bad_inputs") == [2]
        assert found.column("reason", "bad_inputs") == ["truncated"]
        assert (found.facts.rows, found.facts.usable) == (6, 4)
    assert len({found.facts.content for found in indexed.values()}) == 1
    assert len({found.plan.digest for found in indexed.values()}) == len(SOURCES)


@pytest.mark.parametrize("kind", SOURCES)
def test_reading_back_gives_the_usable_images_in_order_without_repeats(indexed: dict[str, Indexed], kind: str) -> None:
    found = indexed[kind]
    images = list(found.inputs.images(found.plan.digest, 0, 6))
    assert [image.image_index for image in images] == [0, 1, 4, 5]
    assert [image.data for image in images] == [BYTES[0], BYTES[1], BYTES[4], BYTES[5]]
    assert [image.problem for image in images] == [None] * 4


@pytest.mark.parametrize("kind", SOURCES[2:])
@pytest.mark.parametrize("shard_rows", [1, 3, 100])
def test_the_cut_of_containers_into_shards_changes_no_row(
    indexed: dict[str, Indexed], tmp_path: Path, kind: str, shard_rows: int
) -> None:
    found = index(tmp_path, indexed[kind].plan.stage.subject, shard_rows=shard_rows)
    assert found.rows(stage=True) == indexed[kind].rows(stage=True)


def test_labels_and_captions_of_the_records_are_kept(indexed: dict[str, Indexed]) -> None:
    good = [0, 1, 3, 4, 5]
    for kind in ("parquet", "parquet_struct", "wds", "hf"):
        assert indexed[kind].column("caption") == [CAPTIONS[i] for i in good], kind
    named = [["cat", "dog"][LABELS[i]] for i in good]
    assert indexed["hf"].column("label") == indexed["parquet_struct"].column("label") == named
    assert indexed["parquet"].column("label") == indexed["wds"].column("label") == [str(LABELS[i]) for i in good]
    assert indexed["wds"].column("attributes") == [[("n", "1")]] * 5


def test_uris_say_where_in_the_container_the_bytes_are(indexed: dict[str, Indexed]) -> None:
    assert [uri.rpartition("/")[2] for uri in indexed["parquet"].column("uri")] == [
        "0.parquet#0,0", "0.parquet#0,1", "0.parquet#1,0", "1.parquet#0,0", "1.parquet#0,1",
    ]  # fmt: skip
    for uri, i in zip(indexed["wds"].column("uri"), [0, 1, 3, 4, 5]):
        container, _, place = uri.rpartition("#")
        offset, size, name = place.split(",", 2)
        assert name == NAMES[i]
        assert Path(container).read_bytes()[int(offset) : int(offset) + int(size)] == BYTES[i]


def test_a_labels_file_names_the_members_of_a_tar(indexed: dict[str, Indexed], tmp_path: Path) -> None:
    fill_folder(tmp_path, {"l.csv": b"file,label,n\n4.webp,owl,2\n0.jpg,elk,\n"})
    found = index(tmp_path / "s", indexed["wds"].plan.stage.subject, labels=f"file:{tmp_path}/l.csv")
    assert found.column("label") == ["elk", "1", "1", "owl", "1"]
    assert found.column("attributes")[3] == [("n", "2")]


# ------------------------------------------------------------------ tars


def test_folders_inside_a_tar_are_labels_and_strange_names_survive(tmp_path: Path) -> None:
    names = ["./cat/a#1,2,b.jpg", "cat/ünï 100%.JPG", "dog/x.v2.jpg", "top.png"]
    make_tar(tmp_path / "a#5,6,b.tar", [(name, jpeg(i)) for i, name in enumerate(names)])
    found = index(tmp_path / "s", f"wds:{tmp_path}", labels="from_folders")
    assert found.column("label") == ["cat", "cat", "dog", None]
    assert [member_name(uri) for uri in found.column("uri")] == names
    assert [i.data for i in found.inputs.images(found.plan.digest, 0, 4)] == [jpeg(i) for i in range(4)]


def test_files_without_an_image_make_no_record_and_segmentations_beside_one_neither(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [("0.txt", b"alone"), ("1.jpg", jpeg(1)), ("1.seg.png", encode(noise(1)))])
    assert [member_name(uri) for uri in index(tmp_path / "s", f"wds:{tmp_path}").column("uri")] == ["1.jpg"]


@pytest.mark.parametrize("name", ["../../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "a\x01.jpg"])
def test_a_member_whose_name_leaves_its_folder_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    make_tar(tmp_path / "a.tar", [("0.jpg", jpeg(0)), (name, jpeg(1))])
    with pytest.raises(ShardFailed, match="unsafe name") as caught:
        index(tmp_path / "s", f"wds:{tmp_path}")
    assert caught.value.error == "UnsafeName"
    assert not list((tmp_path / "s").rglob("*.jpg")) and not list((tmp_path / "s").rglob("artifacts/*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_a_tar_is_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.jpg", jpeg(0))
        add(tar, "1.jpg", b"", type=kind, linkname="/etc/passwd")
    with pytest.raises(ShardFailed, match="not a plain file"):
        index(tmp_path / "s", f"wds:{tmp_path}")


def test_a_cut_tar_fails_and_a_compressed_one_is_refused(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [("0.jpg", jpeg(0)), ("1.jpg", bytes(5000))])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:3000])
    with pytest.raises(ShardFailed, match="cut off") as caught:
        index(tmp_path / "s", f"wds:{tmp_path}/a.tar")
    assert caught.value.error == "ImageChanged"
    (tmp_path / "b.tar.gz").write_bytes(b"")
    with pytest.raises(BadRef, match="compressed"):
        index(tmp_path / "s", f"wds:{tmp_path}")


def test_a_set_whose_containers_hold_no_image_is_empty(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [("0.txt", b"x")])
    with pytest.raises(ShardFailed, match="hold no image") as caught:
        index(tmp_path / "s", f"wds:{tmp_path}")
    assert caught.value.error == "EmptyImageSet"


# ------------------------------------------------------------------ tables


def test_a_table_without_images_is_refused_before_any_work(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b"x"], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(BadRef, match=r"'image' of bytes .* found picture binary, label int64"):
        index(tmp_path / "s", f"parquet:{tmp_path}")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no, it is not")
    with pytest.raises(BadRef, match=r"a\.parquet"):
        index(tmp_path / "s", f"parquet:{tmp_path}")


def test_a_row_without_bytes_is_an_empty_image(tmp_path: Path) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": jpeg(1), "path": "a.jpg"}, {"bytes": None, "path": "gone.jpg"}, None]
    pq.write_table(pa.table({"image": pa.array(rows, struct)}), tmp_path / "a.parquet")
    found = index(tmp_path / "s", f"parquet:{tmp_path}")
    assert found.column("reason", "bad_inputs") == ["empty", "empty"]


def test_other_plain_columns_become_attributes_and_several_captions_are_kept(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image": [jpeg(1), jpeg(2)],
            "caption": [["first", "second"], ["only"]],
            "kind": pa.array(["x", "y"]).dictionary_encode(),
            "score": [0.5, None],
            "embedding": pa.array([[[1.0]], [[2.0]]]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    found = index(tmp_path / "s", f"parquet:{tmp_path}")
    assert found.column("caption") == ["first", "only"]
    assert found.column("attributes") == [
        [("captions", '["first", "second"]'), ("kind", "x"), ("score", "0.5")],
        [("captions", '["only"]'), ("kind", "y")],
    ]


def test_a_saved_data_set_of_several_splits_names_them(tmp_path: Path) -> None:
    make_source("hf", tmp_path / "d" / "train")
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(BadRef, match=f"choose one of hf:{tmp_path}/d/train, hf:{tmp_path}/d/test"):
        index(tmp_path / "s", f"hf:{tmp_path}/d")


def test_a_saved_data_set_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    make_source("hf", tmp_path / "d")
    (tmp_path / "d" / "state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}')
    with pytest.raises(BadRef, match="expected files of the same folder"):
        index(tmp_path / "s", f"hf:{tmp_path}/d")


# ------------------------------------------------------------------ S3


@pytest.mark.parametrize("kind", ["folder", "wds", "parquet_struct", "hf"])
def test_images_in_s3_are_the_same_images(
    moto_bucket: str, indexed: dict[str, Indexed], tmp_path: Path, kind: str
) -> None:
    from cluster.stores.base import make_store

    make_source(kind, tmp_path / "set")
    bucket = make_store(f"s3://{moto_bucket}")
    for path in (tmp_path / "set").iterdir():
        bucket.create(f"my set/{path.name}", path.read_bytes())
    source = "parquet" if kind == "parquet_struct" else kind
    found = index(tmp_path / "s", f"{source}:s3://{moto_bucket}/my set")
    assert found.facts.content == indexed[kind].facts.content
    assert found.column("label") == indexed[kind].column("label")
    assert [i.data for i in found.inputs.images(found.plan.digest, 0, 6)] == [BYTES[i] for i in (0, 1, 4, 5)]


# ------------------------------------------------------------------ the demo world


def test_the_world_is_an_image_set_of_held_out_scenes_with_their_truth(tmp_path: Path) -> None:
    found = index(tmp_path, "world:n=300,seed=7")
    assert found.plan.stage.subject == "world:seed=7,n=300"
    assert found.plan.rounds[0].n_shards == 2
    rows = found.rows()
    world = World(seed=7)
    truth = truth_rows(attributes(world, HELD_OUT_INDICES.start + np.arange(300)))
    assert [row["label"] for row in rows] == [t["label"] for t in truth]
    assert [row["caption"] for row in rows] == [t["caption"] for t in truth]
    assert dict(rows[5]["attributes"])["background"] == truth[5]["background"]
    assert {(row["format"], row["width"], row["height"]) for row in rows} == {("PPM", 64, 64)}
    image = next(found.inputs.images(found.plan.digest, 299, 300))
    wanted = render(world, HELD_OUT_INDICES.start + 299)[0]
    assert image.data == b"P6\n64 64\n255\n" + wanted.tobytes()
    np.testing.assert_array_equal(np.asarray(decode(image.data)), wanted)


def test_the_first_image_of_world_zero_never_changes() -> None:
    import hashlib

    source = open_source(ImageSetRef.parse("world:seed=0,n=1"), Files())
    assert source.read("world:seed=0,n=1#0") == encode_ppm(render(World(seed=0), HELD_OUT_INDICES.start)[0])
    assert hashlib.sha256(source.read("world:seed=0,n=1#0")).hexdigest()[:16] == "14b4c3e348c3528a"


@pytest.mark.parametrize(
    "location",
    ["seed=0", "n=0", "n=1000001", "n=5,colour=red", "n=x", "n=5,n=6", "seed=0,n=5,text=2", "n=5,watermark_shape=moon"],
)
def test_a_world_that_cannot_be_is_refused(location: str) -> None:
    with pytest.raises(BadRef, match="for example world:seed=0,n=2000"):
        list_source(ImageSetRef.parse(f"world:{location}"), Files())


def test_equal_worlds_have_one_name() -> None:
    written = "world:n=5,watermark_shape=star,text=0.5,watermark=0.05"
    assert canonical_images(Images(ref=written)).ref == "world:seed=0,n=5,text=0.5,watermark_shape=star"
    world, n = parse_location(ImageSetRef.parse(written))
    assert (world, n) == (World(text=0.5, watermark_shape="star"), 5)
