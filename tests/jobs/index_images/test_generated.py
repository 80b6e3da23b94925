"""Generated images as an image set: the same bytes whenever they are read, another index for other weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from cluster.files import Files
from jobs.index_images import generated
from jobs.index_images.sources import canonical_images, list_source, open_source
from jobs.protocol import FileInfo
from miclip_core.generate.load import load_generator
from miclip_core.images import decode
from miclip_core.zoo import shipped
from schemas.cells import Images
from schemas.errors import BadRef, ImageChanged, ReadsNoImages
from schemas.refs import ImageSetRef, ModelRef
from tests.indexing import index
from tests.lakes import Lake, make_extract

REF = "generated:demo:generator,seed=2,n=40"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "BLOCK", 16)


def test_the_index_of_a_generated_set_read_twice_is_equal(tmp_path: Path) -> None:
    first = index(tmp_path / "a", "generated:demo:generator,n=40,seed=2")
    second = index(tmp_path / "b", REF, shard_rows=2, threads=1)
    assert first.plan.stage.subject == second.plan.stage.subject == REF
    assert first.plan.rounds[0].n_shards == 3 and second.plan.rounds[0].n_shards == 2
    assert first.plan.digest == second.plan.digest and first.facts == second.facts
    rows = first.rows()
    assert rows == second.rows() and len(rows) == 40
    assert {(row["format"], row["width"], row["height"]) for row in rows} == {("PPM", 64, 64)}
    truth = load_generator(ModelRef.parse("demo:generator")).truth_rows(2, range(40))
    assert [row["label"] for row in rows] == [known["label"] for known in truth]
    assert dict(rows[7]["attributes"]) == {
        name: str(value) for name, value in truth[7].items() if value is not None and name != "label"
    }
    assert [row["uri"] for row in rows] == [f"{REF}#{i}" for i in range(40)]
    drawn = load_generator(ModelRef.parse("demo:generator")).sample(2, [39])[0]
    (image,) = first.inputs.images(first.plan.digest, 39, 40)
    np.testing.assert_array_equal(np.asarray(decode(image.data)), drawn.permute(1, 2, 0).numpy())


def test_fewer_images_are_the_first_of_more() -> None:
    more, fewer = (open_source(ImageSetRef.parse(f"generated:demo:generator,seed=2,n={n}"), Files()) for n in (40, 3))
    assert more.read(f"{REF}#2") == fewer.read("generated:demo:generator,seed=2,n=3#2")
    other = open_source(ImageSetRef.parse("generated:demo:generator,seed=3,n=3"), Files())
    assert other.read("generated:demo:generator,seed=3,n=3#2") != more.read(f"{REF}#2")


def test_other_weights_are_another_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list_source(ImageSetRef.parse(REF), Files())
    assert before.column("uri").to_pylist() == [f"{REF}#0-16", f"{REF}#16-32", f"{REF}#32-40"]
    shutil.copytree(shipped.FOLDER / "generator", tmp_path / "generator")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    assert list_source(ImageSetRef.parse(REF), Files()) == before
    path = tmp_path / "generator" / "model.safetensors"
    weights = load_file(path)
    weights["paint.bias"] = weights["paint.bias"] + 0.5
    save_file(weights, path)
    after = list_source(ImageSetRef.parse(REF), Files())
    assert after.column("stamp").to_pylist() != before.column("stamp").to_pylist()
    source = open_source(ImageSetRef.parse(REF), Files())
    with pytest.raises(ImageChanged, match="its files changed since the set was listed; index the image set again"):
        next(source.records(FileInfo(**before.to_pylist()[0])))


def test_an_image_of_another_set_is_no_image_of_this() -> None:
    source = open_source(ImageSetRef.parse(REF), Files())
    for uri in (f"{REF}#40", "generated:demo:generator,seed=2,n=41#0", f"{REF}#x", REF):
        with pytest.raises(ImageChanged, match="is no image of generated:demo:generator,seed=2,n=40"):
            source.read(uri)


def test_refs_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadRef, match="demo:clip-p8 draws no images"):
        canonical_images(Images(ref="generated:demo:clip-p8,n=5"))
    with pytest.raises(BadRef, match="labels: from_folders"):
        canonical_images(Images(ref=REF, labels="from_folders"))


def test_a_stage_that_reads_images_refuses_a_generator(tmp_path: Path) -> None:
    images = {"ref": "generated:demo:generator,n=4"}
    with pytest.raises(
        ReadsNoImages, match=r"stages\.acts: demo:generator is a generator: it draws images and reads none"
    ):
        Lake(tmp_path).run(make_extract(tmp_path, ("demo:generator",), images=images))
