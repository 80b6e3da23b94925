"""Exported files reread as what the renderer gives, and a second export keeps them."""

import csv
import os
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from miclip_core.world import export as exporting
from miclip_core.world.export import export_world, labels_schema
from miclip_core.world.render import render
from miclip_core.world.scene import HELD_OUT_INDICES, World
from miclip_core.world.truth import truth_rows
from schemas.errors import BadSpec

WORLD = World(seed=4)


def read(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("export")
    export_world(directory, WORLD, 300)
    return directory


def test_files_reread_equal_the_renderer(exported):
    for row in pq.read_table(exported / "labels.parquet").to_pylist()[::13]:
        image, labels = render(replace(WORLD, seed=row["seed"]), row["index"])
        assert np.array_equal(read(exported / "images" / row["file"]), image)
        assert np.array_equal(read(exported / "masks" / row["file"]), labels)
        assert row["index"] in HELD_OUT_INDICES


def test_the_table_has_one_row_per_file_and_the_truth_of_each(exported):
    from miclip_core.world.scene import attributes

    table = pq.read_table(exported / "labels.parquet")
    assert table.schema.equals(labels_schema())
    rows = table.to_pylist()
    assert [row["file"] for row in rows] == sorted(os.listdir(exported / "images"))
    for row, truth in zip(rows, truth_rows(attributes(WORLD, [row["index"] for row in rows])), strict=True):
        assert truth.items() <= row.items()
    with open(exported / "labels.csv") as file:
        assert [row["caption"] for row in csv.DictReader(file)] == [row["caption"] for row in rows]


def test_a_second_export_keeps_equal_files_and_mends_others(exported):
    kept, broken = exported / "images" / "000000.png", exported / "images" / "000007.png"
    before, image = kept.stat().st_mtime_ns, broken.read_bytes()
    broken.write_bytes(image[:20])
    again = export_world(exported, WORLD, 300)
    assert (again.written, again.kept) == (1, 299)
    assert broken.read_bytes() == image and kept.stat().st_mtime_ns == before


def test_class_folders_hold_the_same_images(tmp_path, exported):
    steps = []
    export_world(tmp_path, WORLD, 40, by_class=True, progress=lambda done, n: steps.append((done, n)))
    rows = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    assert steps == [(40, 40)]
    for row in rows:
        folder, name = row["file"].split("/")
        assert folder == row["label"].replace(" ", "_")
        assert (tmp_path / "images" / row["file"]).read_bytes() == (exported / "images" / name).read_bytes()


def test_an_interrupted_write_leaves_no_half_file(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError("disk")

    monkeypatch.setattr(exporting.os, "replace", fail)
    with pytest.raises(OSError):
        export_world(tmp_path, WORLD, 5)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_another_world_does_not_go_into_the_same_folder(exported, tmp_path):
    with pytest.raises(BadSpec, match="other settings"):
        export_world(exported, World(seed=5), 300)
    (tmp_path / "images").mkdir()
    with pytest.raises(BadSpec, match="no export"):
        export_world(tmp_path, WORLD, 5)
    with pytest.raises(BadSpec, match="n=0"):
        export_world(tmp_path / "new", WORLD, 0)
