"""A text-driven segmenter against the library's own forward of one image and one text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from miclip_core.dissect.masks import Masks
from miclip_core.dissect.segment import TextSegmenter
from schemas.errors import BadSpec, RemoteCodeRefused, UnknownModel, UnsafeCheckpoint, UnsupportedBlock, WeightsMissing
from tests.miclip_core.dissect import tiny_models

CONCEPTS = ("red circle", "star", "blue ring on white", "purple")
PIXELS = torch.randint(0, 256, (3, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("clipseg")
    return folder, tiny_models.clipseg(folder)


def dense(masks: Masks) -> torch.Tensor:
    out = torch.zeros(masks.n_images, masks.n_concepts, *masks.mask.shape[1:], dtype=torch.bool)
    out[masks.image, masks.concept] = masks.mask
    return out


def by_the_library(folder: Path, model: Any, texts: tuple[str, ...]) -> torch.Tensor:
    """Probabilities [B,M,I,J] by one forward of the whole model per image and text."""
    processor = tiny_models.transformers.AutoProcessor.from_pretrained(folder)
    rows = []
    with torch.no_grad():
        for image in PIXELS:
            inputs = [processor(text=[text], images=[image], return_tensors="pt") for text in texts]
            rows.append(torch.stack([model(**one).logits.view(32, 32).sigmoid() for one in inputs]))
    return torch.stack(rows)


@pytest.mark.parametrize("decoded", [64, 5, 1])
def test_masks_are_those_of_one_forward_per_image_and_text(saved: tuple[Path, Any], decoded: int) -> None:
    probability = by_the_library(*saved, tuple(f"a {name}" for name in CONCEPTS))
    around = probability.flatten().sort().values[5000:7000]  # of 12,288
    gap = around.diff().argmax()
    middle = around[gap : gap + 2].mean().item()
    assert (probability - middle).abs().min() > 1e-5  # so that no rounding decides
    segmenter = TextSegmenter(saved[0], CONCEPTS, template="a {}", threshold=middle, decoded=decoded)
    masks = segmenter.segment(PIXELS, torch.arange(3))
    assert segmenter.concepts == CONCEPTS and (masks.image.diff() >= 0).all()
    assert torch.equal(dense(masks), probability > middle)
    assert 0.2 < dense(masks).float().mean() < 0.8


def test_what_is_nowhere_has_no_mask(saved: tuple[Path, Any]) -> None:
    masks = TextSegmenter(saved[0], CONCEPTS, threshold=1 - 1e-6).segment(PIXELS, torch.arange(3))
    assert masks.mask.shape == (0, 32, 32) and (masks.n_images, masks.n_concepts) == (3, 4)


def test_settings_that_segment_nothing_are_refused(saved: tuple[Path, Any]) -> None:
    for concepts, more in (((), {}), (CONCEPTS, {"template": "a"}), (CONCEPTS, {"threshold": 1.0})):
        with pytest.raises(BadSpec, match="expected"):
            TextSegmenter(saved[0], concepts, **more)  # type: ignore[arg-type]


def test_folders_that_are_no_such_model_are_refused(saved: tuple[Path, Any], tmp_path: Path) -> None:
    def copy(name: str, leave_out: str = "", **config: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in saved[0].iterdir():
            if file.name != leave_out:
                (folder / file.name).write_bytes(file.read_bytes())
        (folder / "config.json").write_text(json.dumps(json.loads((saved[0] / "config.json").read_text()) | config))
        return folder

    with pytest.raises(RemoteCodeRefused, match="auto_map"):
        TextSegmenter(copy("code", auto_map={"AutoModel": "mine.Mine"}), CONCEPTS)
    with pytest.raises(UnsupportedBlock, match="CLIPSegModel"):
        TextSegmenter(copy("bare", architectures=["CLIPSegModel"]), CONCEPTS)
    with pytest.raises(WeightsMissing, match="another shape"):
        TextSegmenter(copy("smaller", reduce_dim=4), CONCEPTS)
    with pytest.raises(UnknownModel, match="no weights"):
        TextSegmenter(copy("empty", "model.safetensors"), CONCEPTS)
    with pytest.raises(UnknownModel):
        TextSegmenter(tmp_path, CONCEPTS)
    pickled = copy("pickled", "model.safetensors")
    torch.save({"x": Path}, pickled / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpoint, match="run code"):
        TextSegmenter(pickled, CONCEPTS)
