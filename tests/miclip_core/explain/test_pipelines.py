"""Diffusion pipelines from folders, and images made by them, against the library's own call; needs diffusers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from miclip_core.explain.makers import DiffusionMaker, ImageMaker, is_black
from miclip_core.explain.pipelines import load_pipeline
from schemas.errors import (
    BadSpec,
    MissingPackage,
    NonFiniteActivation,
    RemoteCodeRefused,
    UnknownModel,
    UnsupportedBlock,
    WeightsMissing,
)
from tests.miclip_core.explain import diffusion

HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None
needs_diffusers = pytest.mark.skipif(not HAS_DIFFUSERS, reason="needs the extra miclip[diffusion]")
TEXTS, SEEDS = ["A Red Circle", "a striped star on a grey background", "A Red Circle"], [5, 6, 7]
SETTINGS: dict[str, Any] = {"steps": 3, "guidance": 4.5, "size": diffusion.SIZE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    diffusion.stable_diffusion(folder)
    return folder


def by_the_library(folder: Path, prompt: str, seed: int) -> torch.Tensor:
    """One image by the library alone, uint8 [3,h,w]."""
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        [prompt], generator=diffusion.generators([seed]), num_inference_steps=3, guidance_scale=4.5,
        height=diffusion.SIZE, width=diffusion.SIZE, output_type="pil",
    )  # fmt: skip
    return torch.from_numpy(np.array(made.images[0])).permute(2, 0, 1)


@needs_diffusers
def test_images_are_the_librarys_of_the_prefixed_text_in_lower_case(folder: Path) -> None:
    maker: ImageMaker = DiffusionMaker(folder, **SETTINGS)
    images = maker.make(TEXTS, SEEDS)
    assert images.dtype == torch.uint8 and images.shape == (3, 3, 32, 32)
    for image, text, seed in zip(images, TEXTS, SEEDS, strict=True):
        assert torch.equal(image, by_the_library(folder, "A realistic image of " + text.lower(), seed))
    assert not torch.equal(images[0], images[2]) and images.float().std() > 10
    other = DiffusionMaker(folder, prefix="a blue ", **SETTINGS).make(TEXTS[:1], SEEDS[:1])
    assert not torch.equal(other[0], images[0])
    assert torch.equal(other[0], by_the_library(folder, "a blue a red circle", 5))


@needs_diffusers
def test_an_image_does_not_depend_on_how_many_are_asked_for(folder: Path) -> None:
    pairs, one = DiffusionMaker(folder, batch_size=2, **SETTINGS), DiffusionMaker(folder, **SETTINGS)
    together = pairs.make(TEXTS, SEEDS)
    assert torch.equal(together[2], pairs.make(TEXTS[2:], SEEDS[2:])[0])
    assert (together.int() - one.make(TEXTS, SEEDS).int()).abs().max() <= 1
    assert one.make([], []).shape == (0, 3, 32, 32)
    with pytest.raises(BadSpec, match="one seed per text"):
        one.make(TEXTS, SEEDS[:2])


@needs_diffusers
def test_black_images_of_a_safety_filter_are_known(tmp_path: Path) -> None:
    diffusion.stable_diffusion(tmp_path, safety=True)
    maker = DiffusionMaker(tmp_path, **SETTINGS)
    assert not is_black(maker.make(TEXTS, SEEDS)).any()
    weights = load_file(tmp_path / "safety_checker/model.safetensors")
    weights["concept_embeds_weights"].fill_(-2.0)  # a cosine from which on an image is refused
    save_file(weights, tmp_path / "safety_checker/model.safetensors", {"format": "pt"})
    strict = DiffusionMaker(tmp_path, **SETTINGS)
    assert is_black(strict.make(TEXTS, SEEDS)).all()


def broken(folder: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy with another model_index.json."""
    for file in folder.rglob("*"):
        if file.is_file():
            (to / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (to / file.relative_to(folder)).write_bytes(file.read_bytes())
    index = json.loads((to / "model_index.json").read_text())
    change(index)
    (to / "model_index.json").write_text(json.dumps(index))
    return to


@needs_diffusers
def test_images_that_are_no_numbers_stop(folder: Path, tmp_path: Path) -> None:
    copy = broken(folder, tmp_path / "nan", lambda index: None)
    weights = load_file(copy / "vae/diffusion_pytorch_model.safetensors")
    weights["decoder.conv_out.bias"].fill_(torch.nan)
    save_file(weights, copy / "vae/diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteActivation, match="fp32"):
        DiffusionMaker(copy, **SETTINGS).make(TEXTS[:1], SEEDS[:1])


@needs_diffusers
@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"])
def test_parts_need_all_their_weights_in_safetensors(folder: Path, tmp_path: Path, file: str) -> None:
    copy = broken(folder, tmp_path, lambda index: None)
    path = copy / f"{file}.safetensors"
    weights = load_file(path)
    left_out = next(name for name in weights if name.endswith("weight"))
    save_file({name: value for name, value in weights.items() if name != left_out}, path, {"format": "pt"})
    with pytest.raises(WeightsMissing, match="1 tensors are missing"):
        load_pipeline(copy, torch.float32)
    path.unlink()
    torch.save(weights, path.with_suffix(".bin"))
    with pytest.raises(WeightsMissing, match="safetensors"):
        load_pipeline(copy, torch.float32)


@needs_diffusers
def test_other_pipelines_are_refused(folder: Path, tmp_path: Path) -> None:
    painter = broken(folder, tmp_path / "a", lambda index: index.update(_class_name="StableDiffusionInpaintPipeline"))
    with pytest.raises(UnsupportedBlock, match="Inpaint"):
        load_pipeline(painter, torch.float32)
    unknown = broken(folder, tmp_path / "b", lambda index: index.update(unet=["diffusers", "NoSuchNet"]))
    with pytest.raises(UnknownModel, match="NoSuchNet"):
        load_pipeline(unknown, torch.float32)
    elsewhere = broken(folder, tmp_path / "c", lambda index: index.update(unet=["json", "JSONDecoder"]))
    with pytest.raises(UnknownModel, match="json"):
        load_pipeline(elsewhere, torch.float32)


def test_pipelines_that_bring_code_are_refused(tmp_path: Path) -> None:
    def refuse(name: str, index: dict[str, Any], file: str = "", text: str = "") -> None:
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "model_index.json").write_text(json.dumps(index))
        if file:
            (tmp_path / name / file).write_text(text)
        with pytest.raises(RemoteCodeRefused):
            load_pipeline(tmp_path / name, torch.float32)

    refuse("own", {"_class_name": ["pipeline", "Mine"]})
    refuse("part", {"_class_name": "StableDiffusionPipeline", "unet": ["mine", "Net"]}, "unet/mine.py")
    mapped = json.dumps({"auto_map": {"AutoModel": "mine.Net"}})
    refuse("map", {"_class_name": "StableDiffusionPipeline"}, "unet/config.json", mapped)


@pytest.mark.skipif(HAS_DIFFUSERS, reason="diffusers is installed")
def test_without_diffusers_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(MissingPackage, match=r"miclip\[diffusion\]"):
        load_pipeline(tmp_path, torch.float32)
