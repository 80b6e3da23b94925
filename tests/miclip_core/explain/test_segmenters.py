"""Masks of texts: of the demo world against a slow loop over label maps, of CLIPSeg against the library's own forward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miclip_core.dissect.segment import MaskDecoder
from miclip_core.explain.segmenters import ClipsegSegmenter, TextDriven, WorldSegmenter
from miclip_core.world.captions import CaptionMix, full_claims, sample_claims, sentences
from miclip_core.world.render import render
from miclip_core.world.scene import CONCEPTS, World, attributes
from schemas.errors import BadSpec, UnknownModel
from tests.miclip_core.dissect import tiny_models

WORLD = World(seed=4, text=0.5, watermark=0.2)
IMAGES = range(1_000_000, 1_000_060)
PIXELS = torch.zeros(3, 64, 64, dtype=torch.uint8)
SEGMENTER = WorldSegmenter(WORLD)


def values_of(image: int, label: int) -> dict[str, str]:
    """What the pixels with this label show."""
    scene = attributes(WORLD, [image])
    if label == 0:
        return {"background": CONCEPTS["background"][scene.background[0]]}
    if label == 8:
        return {"word": CONCEPTS["word"][scene.word[0]]}
    fields = ("shape", "colour", "texture", "size", "position") if label <= 4 else ()
    return {field: CONCEPTS[field][getattr(scene, field)[0, label - 1]] for field in fields}


def by_hand(image: int, phrases: list[dict[str, str]], word: str | None, background: str | None) -> list[np.ndarray]:
    """The masks of what a text was made from, pixel by pixel."""
    labels = render(WORLD, image)[1]
    wanted = [*phrases, *([{"word": word}] if word else [])]
    wanted = wanted or ([{"background": background}] if background else [])
    masks = [np.zeros(labels.shape, bool) for _ in wanted]
    shown = {label: values_of(image, label) for label in np.unique(labels).tolist()}
    for mask, asked in zip(masks, wanted, strict=True):
        fits = {label: asked.items() <= has.items() for label, has in shown.items()}
        for y in range(64):
            for x in range(64):
                mask[y, x] = fits[int(labels[y, x])]
    return [mask for mask in masks if mask.any()]


values = {
    category: st.sampled_from(CONCEPTS[category]) for category in ("shape", "colour", "texture", "size", "position")
}
phrase = st.fixed_dictionaries({}, optional=values).filter(bool)


def text_of(phrases: list[dict[str, str]], word: str | None, background: str | None) -> str:
    parts = []
    for one in phrases:
        before = " ".join(one[field] for field in ("size", "colour", "texture") if field in one)
        place = f" in the {one['position']}" if "position" in one else ""
        parts.append(f"a {before} {one.get('shape', 'object')}{place}")
    said = " and ".join(parts) + (f" that says {word}" if word else "")
    return said + (f" on a {background} background" if background else "")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(IMAGES), st.lists(phrase, max_size=3),
    st.none() | st.sampled_from(CONCEPTS["word"]), st.none() | st.sampled_from(CONCEPTS["background"]),
)  # fmt: skip
def test_masks_are_those_of_a_loop_over_pixels(
    image: int, phrases: list[dict[str, str]], word: str | None, background: str | None
) -> None:
    found = SEGMENTER.masks(PIXELS, image, text_of(phrases, word, background))
    expected = by_hand(image, phrases, word, background)
    assert found.dtype == torch.bool and found.shape == (len(expected), 64, 64)
    assert all(np.array_equal(mask.numpy(), other) for mask, other in zip(found, expected, strict=True))


def test_the_full_caption_of_an_image_finds_each_of_its_objects() -> None:
    scenes = attributes(WORLD, IMAGES)
    for n, (image, caption) in enumerate(zip(IMAGES, sentences(full_claims(scenes)), strict=True)):
        labels = render(WORLD, image)[1]
        union = SEGMENTER.masks(PIXELS, image, caption).any(0).numpy()
        shown = (labels > 0) & (labels < 9) if scenes.count[n] or scenes.word[n] >= 0 else labels == 0
        assert np.array_equal(union, shown), caption


def test_what_is_true_is_found() -> None:
    scenes = attributes(WORLD, IMAGES)
    for image, caption in zip(IMAGES, sentences(sample_claims(scenes, CaptionMix(), seed=3)), strict=True):
        covered = (render(WORLD, image)[1] == 8).any()  # a word may hide an object
        assert len(SEGMENTER.masks(PIXELS, image, caption)) or covered, caption


def test_several_objects_may_fit_one_phrase() -> None:
    many = range(1_000_000, 1_000_400)
    scenes = attributes(WORLD, many)
    circles = (scenes.shape == 0).sum(1)
    image = many[int(np.flatnonzero((circles == 2) & (scenes.count > 2) & (scenes.word < 0))[0])]
    (mask,) = SEGMENTER.masks(PIXELS, image, "a circle")
    labels = render(WORLD, image)[1]
    assert set(labels[mask.numpy()]) == set(np.flatnonzero(attributes(WORLD, [image]).shape[0] == 0) + 1)


@pytest.mark.parametrize("text", ["", "an elephant", "an object", "a red background"])
def test_a_text_that_names_nothing_of_the_world_gives_no_mask(text: str) -> None:
    assert all(SEGMENTER.masks(PIXELS, image, text).shape == (0, 64, 64) for image in IMAGES)


def test_an_image_of_no_number_has_no_truth() -> None:
    with pytest.raises(BadSpec, match="demo world"):
        SEGMENTER.masks(PIXELS, None, "a circle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clipseg")
    tiny_models.clipseg(folder)
    return folder


PICTURES = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def probability(folder: Path, picture: torch.Tensor, text: str) -> torch.Tensor:
    """By the library's own model and processor."""
    model = tiny_models.transformers.CLIPSegForImageSegmentation.from_pretrained(folder).eval()
    processor = tiny_models.transformers.AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**processor(text=[text], images=[picture], return_tensors="pt")).logits
    return logits.view(1, 32, 32).sigmoid()


def test_the_mask_of_any_text_is_that_of_the_librarys_forward(folder: Path) -> None:
    for text, picture in (("a red circle", PICTURES[0]), ("a star on a grey background", PICTURES[1])):
        expected = probability(folder, picture, text)
        spread = expected.flatten().sort().values[300:700]
        gap = int(spread.diff().argmax())
        threshold = spread[gap : gap + 2].mean().item()
        segmenter: TextDriven = ClipsegSegmenter(folder, threshold=threshold)
        mask = segmenter.masks(picture, None, text)
        assert (expected - threshold).abs().min() > 1e-6  # so that no rounding decides
        assert torch.equal(mask, expected > threshold) and 0.2 < mask.float().mean() < 0.8


def test_a_text_that_is_nowhere_or_empty_gives_no_mask(folder: Path) -> None:
    assert ClipsegSegmenter(folder, threshold=1 - 1e-6).masks(PICTURES[0], None, "star").shape == (0, 32, 32)
    everywhere = ClipsegSegmenter(folder, threshold=1e-6)
    assert everywhere.masks(PICTURES[0], 7, "star").shape == (1, 32, 32)
    assert everywhere.masks(PICTURES[0], 7, " ").shape == (0, 32, 32)


def test_each_text_is_embedded_and_each_image_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("states", "embed"):
        original = getattr(MaskDecoder, name)
        monkeypatch.setattr(
            MaskDecoder, name, lambda self, x, name=name, original=original: (asked.append(name), original(self, x))[1]
        )
    segmenter = ClipsegSegmenter(folder)
    first = [segmenter.masks(picture, None, text) for picture in PICTURES for text in ("star", "red", "ring")]
    again = [segmenter.masks(picture, None, text) for picture in PICTURES for text in ("star", "red", "ring")]
    assert sorted(asked) == ["embed"] * 3 + ["states"] * 2
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_settings_and_folders_that_segment_nothing_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="threshold"):
        ClipsegSegmenter(folder, threshold=0.0)
    with pytest.raises(UnknownModel):
        ClipsegSegmenter(tmp_path)
