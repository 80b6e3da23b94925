"""Every site of every model that ships and reads images, against the library's own model with hooks by hand and small formulas."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import miclip_core
from miclip_core.torchvision_shim import ensure_torchvision
from miclip_core.zoo.load import load_model
from schemas.refs import ModelRef
from tests.miclip_core.zoo import oracles

FOLDER = Path(miclip_core.__file__).parent / "world" / "zoo"
MEMBERS = sorted(
    path.name
    for path in FOLDER.iterdir()
    if path.is_dir() and not path.name.startswith(("_", ".")) and not (path / "generator.json").is_file()
)


def encode(root: Any, images: Tensor) -> Tensor:
    return root.encode_image(images)


def class_token(root: Any, images: Tensor) -> Tensor:
    return root(pixel_values=images).last_hidden_state[:, 0]


def normed_class_token(root: Any, images: Tensor) -> Tensor:
    return root(pixel_values=images).pooler_output


def mean_of_the_map(root: Any, images: Tensor) -> Tensor:
    return root.base_model(pixel_values=images).pooler_output.flatten(1)


def from_open_clip(folder: Path, images: Tensor) -> oracles.Expected:
    """The folder loaded by open_clip itself."""
    ensure_torchvision()
    import open_clip

    root: Any = open_clip.create_model(f"local-dir:{folder}").eval()
    seen = oracles.watch(root, images, encode)
    with torch.no_grad():
        if hasattr(root.visual, "layer4"):
            return oracles.modified_resnet(root, seen)
        return oracles.clip_vit(root, seen, range(len(root.visual.transformer.resblocks)))


def from_transformers(folder: Path, images: Tensor) -> oracles.Expected:
    """The folder loaded by transformers itself, in fp32."""
    ensure_torchvision()
    import transformers

    config = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    if config["model_type"] == "resnet":
        root: Any = kind.from_pretrained(folder, dtype=torch.float32).eval()
        seen = oracles.watch(root, images, mean_of_the_map)
        with torch.no_grad():
            return oracles.hf_resnet(root, seen)
    if "vision_config" in config:  # the tower of a vision-language model, which is CLIP's
        root = kind.from_pretrained(folder, dtype=torch.float32).eval().model.vision_tower
        seen, sizes = oracles.watch(root, images, normed_class_token), config["vision_config"]
        with torch.no_grad():
            return oracles.hf_vit(
                root,
                seen,
                replace(oracles.CLIP, tower=""),
                sizes["num_attention_heads"],
                range(sizes["num_hidden_layers"]),
            )
    root = kind.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    seen = oracles.watch(root, images, class_token)
    with torch.no_grad():
        return oracles.hf_vit(
            root, seen, oracles.VIT, config["num_attention_heads"], range(config["num_hidden_layers"])
        )


def test_the_zoo_has_members() -> None:
    assert len(MEMBERS) >= 8


@pytest.mark.parametrize("name", MEMBERS)
def test_every_site_equals_hooks_and_formulas_on_the_librarys_own_model(name: str) -> None:
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    own = from_open_clip if (FOLDER / name / "open_clip_config.json").is_file() else from_transformers
    oracles.assert_every_site(load_model(ModelRef.parse(f"demo:{name}")), images, own(FOLDER / name, images))
