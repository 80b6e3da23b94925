"""Where timm models come from: tags, folders, files and seeds; their geometry, class names and refusals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from miclip_core.zoo.geometry import normalise, to_pixels
from miclip_core.zoo.load import inspect_model, load_model
from miclip_core.zoo.locate import HubFile, Request
from miclip_core.zoo.timm_models import geometry_of
from schemas.errors import UnknownModel, WeightsMissing
from schemas.refs import ModelRef

import timm  # isort: skip - after the library is importable
from timm.data import create_transform, resolve_data_config  # isort: skip


def ref(text: str) -> ModelRef:
    return ModelRef.parse(text)


@pytest.fixture(scope="module")
def trained() -> Any:
    """A small model of the library, as if trained on five classes."""
    torch.manual_seed(3)
    return timm.create_model("test_vit", num_classes=5).eval()


def save(model: Any, folder: Path, **config: Any) -> Path:
    save_file(model.state_dict(), folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps({"architecture": "test_vit", **config}))
    return folder


def test_a_folder_as_timm_saves_it_builds_the_trained_head_and_names_its_classes(trained: Any, tmp_path: Path) -> None:
    names = ["red", "green", "blue", "cyan", "pink"]
    config = {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.8, "num_classes": 5}
    save(trained, tmp_path, num_classes=5, label_names=names, pretrained_cfg=config)
    model = load_model(ref(f"timm:anything@file:{tmp_path}"))
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.allclose(model.logits(images), trained(images), atol=1e-6)
    assert model.facts.classes == tuple(names)
    assert (model.facts.geometry.resize_hw, model.facts.geometry.crop_hw) == ((200, 200), (160, 160))
    assert (model.facts.mean, model.facts.std) == ((0.5,) * 3, (0.25,) * 3)


def test_the_configuration_is_part_of_the_identity_but_not_of_the_digest_of_the_weights(
    trained: Any, tmp_path: Path
) -> None:
    before = inspect_model(ref(f"timm:anything@file:{save(trained, tmp_path, num_classes=5)}"))
    after = inspect_model(ref(f"timm:anything@file:{save(trained, tmp_path, num_classes=5, global_pool='avg')}"))
    assert before.weights_sha256 == after.weights_sha256
    assert before.weights_sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert before.files_sha256 != after.files_sha256


def test_a_bare_file_needs_the_head_of_its_architecture(trained: Any, tmp_path: Path) -> None:
    save(trained, tmp_path)
    with pytest.raises(WeightsMissing, match=r"have another shape: head\.weight \(5, 64\) instead of \(1000, 64\)"):
        load_model(ref(f"timm:test_vit@file:{tmp_path}/model.safetensors"))


def test_a_published_tag_is_fetched_from_its_repository_as_safetensors(tmp_path: Path) -> None:
    original = timm.create_model("test_vit").eval()
    asked: list[Request] = []

    def locate(request: Request) -> Path:
        asked.append(request)
        return save(original, tmp_path) / "model.safetensors"

    model = load_model(ref("timm:test_vit.r160_in1k"), locate)
    assert asked == [HubFile("timm/test_vit.r160_in1k", "model.safetensors")]
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.allclose(model.logits(images), original(images), atol=1e-6)
    assert model.facts.classes is not None and model.facts.classes[0] == "tench, Tinca tinca"


def test_random_weights_are_those_of_the_seed_and_their_classes_are_numbers() -> None:
    images = torch.randn(1, 3, 160, 160)
    first, again, other = (load_model(ref(f"timm:test_vit/random({seed})")) for seed in (1, 1, 2))
    assert torch.equal(first.logits(images), again.logits(images))
    assert not torch.allclose(first.logits(images), other.logits(images))
    assert first.facts.classes is not None and first.facts.classes[:3] == ("0", "1", "2")
    assert first.facts.weights_sha256 == again.facts.weights_sha256 != other.facts.weights_sha256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_tini_patch16_224/random(0)", "did you mean vit_tiny_patch16_224"),
        ("timm:resnet18.a1_in2k", "has no pretrained tag a1_in2k; did you mean resnet18.a1_in1k"),
        ("timm:test_vit", "name pretrained weights, as in timm:test_vit.TAG with TAG one of r160_in1k"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_fetched(name: str, message: str) -> None:
    def locate(request: Request) -> Path:
        raise AssertionError(f"asked for {request}")

    with pytest.raises(UnknownModel, match=message):
        inspect_model(ref(name), locate)


@pytest.mark.parametrize("size", [(301, 200), (97, 160), (64, 64)])
@pytest.mark.parametrize(
    "config",
    [
        {"input_size": (3, 64, 64), "crop_pct": 0.875, "interpolation": "bicubic"},
        {
            "input_size": (3, 48, 48),
            "crop_pct": 0.95,
            "interpolation": "bilinear",
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
        },
        {"input_size": (3, 64, 64), "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
    ],
)
def test_images_are_prepared_as_timms_own_transform_does(config: dict[str, Any], size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ours = normalise(to_pixels(image, geometry_of(config)), geometry_of(config))
    library = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
    assert torch.allclose(ours, library(image), atol=1e-6)
