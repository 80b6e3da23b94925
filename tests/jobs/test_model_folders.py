"""Folders of models of another kind are refused when work is planned, by the one file that tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.model_folders import check_folder, weight_bytes
from jobs.protocol import Cell, Known
from jobs.text_encoders import find_encoder
from schemas.errors import BadSpec
from schemas.explain_specs import MapExplanationsSpec

RIGHT = {
    "segmenter": ("config.json", '{"model_type": "clipseg"}'),
    "maker": ("model_index.json", '{"_class_name": "StableDiffusionPipeline"}'),
    "sentences": ("modules.json", "[]"),
}


@pytest.mark.parametrize("field", RIGHT)
def test_an_empty_folder_is_refused_and_one_with_its_file_is_not(field: str, tmp_path: Path) -> None:
    with pytest.raises(
        BadSpec, match=rf"stages\.judge\.{field}: {tmp_path}: found nothing in it; expected the folder of a "
    ):
        check_folder("judge", field, f"file:{tmp_path}")
    name, text = RIGHT[field]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadSpec, match=f"found notes.txt and no {name}"):
        check_folder("judge", field, f"file:{tmp_path}")
    (tmp_path / name).write_text(text)
    check_folder("judge", field, f"file:{tmp_path}")


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        (
            "segmenter",
            '{"model_type": "resnet"}',
            "found model_type 'resnet' in config.json; expected .* a CLIPSeg model",
        ),
        ("segmenter", "{", "config.json that is no JSON"),
        ("maker", "{}", "found _class_name None in model_index.json; expected .* a diffusers pipeline"),
    ],
)
def test_a_model_of_another_kind_is_refused(field: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / RIGHT[field][0]).write_text(text)
    with pytest.raises(BadSpec, match=said):
        check_folder("judge", field, f"file:{tmp_path}")


@pytest.mark.parametrize("named", ["truth", "world", "clip", "s3://models/x", "file:/nowhere/on/this/machine"])
def test_what_is_not_seen_from_here_is_left_to_workers(named: str) -> None:
    for field in RIGHT:
        check_folder("judge", field, named)


def test_planning_looks_at_the_folders_that_a_stage_uses(tmp_path: Path) -> None:
    spec = MapExplanationsSpec.model_validate({"reads": ["texts"], "sentences": f"file:{tmp_path}"}, strict=False)
    with pytest.raises(BadSpec, match=r"stages\.map\.sentences"):
        find_encoder(Cell("map", spec, "demo:clip-p8"), Known({}, {}, {str(tmp_path): "s"}), spec.sentences)


def test_weights_are_those_that_libraries_load(tmp_path: Path) -> None:
    def put(name: str, size: int) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))

    put("config.json", 1000)
    put("pytorch_model.bin", 3)
    assert weight_bytes(tmp_path) == 3 and weight_bytes(tmp_path / "config.json") == 1000
    put("model-00001-of-00002.safetensors", 10)
    put("model-00002-of-00002.safetensors", 20)
    put("model.fp16-00001-of-00001.safetensors", 500)
    put("openvino/openvino_model.bin", 400)
    put("2_Dense/model.safetensors", 7)
    assert weight_bytes(tmp_path) == 10 + 20 + 7
    put("model_index.json", 5)  # a pipeline, whose folder may have a second copy for other programs
    assert weight_bytes(tmp_path) == 7
