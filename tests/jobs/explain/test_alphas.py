"""What texts are worth on validation features: overlap with truth, by plain numpy, averaged over images."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from jobs.explain.alphas import Said, Trials, find_overlaps
from jobs.explain.asked import Asked
from jobs.explain.explainer import Try, Written
from jobs.explain.features import Batch
from jobs.latents import Feature
from jobs.text_driven import IndexSegmenter
from jobs.top_images import TopImage
from miclip_core.explain.answers import Answer
from miclip_core.world.location import parse_location
from miclip_core.world.render import LABEL_BACKGROUND, render_scenes
from miclip_core.world.scene import BACKGROUNDS, HELD_OUT_INDICES, attributes
from schemas.plans import Plan, StageSpec
from schemas.refs import ImageSetRef

WORLD, IMAGES, SIDE = "world:seed=0,n=40", (3, 4, 5), 224


def nearest(mask: np.ndarray) -> np.ndarray:
    """A square mask at 224 x 224."""
    place = np.arange(SIDE) * len(mask) // SIDE
    return mask[np.ix_(place, place)]


def said(raw: str) -> Written:
    return Written(0, 0, 1.0, 1.0, Answer(raw, 3, -1.0, True))


def test_the_worth_of_a_text_is_its_mean_overlap_with_where_the_feature_is_active() -> None:
    maps = torch.rand(len(IMAGES), 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    world, _ = parse_location(ImageSetRef.parse(WORLD))
    scenes = attributes(world, np.array(IMAGES) + HELD_OUT_INDICES.start)
    labels, named = render_scenes(scenes)[1], BACKGROUNDS[scenes.background[0]]
    overlaps = []
    for number, active in enumerate(maps.numpy() > 0):
        found = (labels[number] == LABEL_BACKGROUND) & (BACKGROUNDS[scenes.background[number]] == named)
        one, other = nearest(active), nearest(found)
        overlaps.append((one & other).sum() / (one | other).sum())
    assert len(set(overlaps)) > 1 and max(overlaps) > 0.2

    params = {"masks_scored": "union", "method": "steering", "alphas": [1.0]}
    stage = StageSpec(kind="explain", method=1, subject="m", output="alphas", params=params)  # type: ignore[arg-type]
    asked = Asked(Plan(stage=stage, rounds=(), worker="w"))
    shown = [TopImage(str(i), i, f"{WORLD}#{i}", of) for i, of in zip(IMAGES, maps, strict=True)]
    batch = Batch([Feature(7, True, 1.0, 1.0)], [shown], torch.zeros(1, 3, 3, 64, 64, dtype=torch.uint8), maps[None])
    trials = Trials(asked)
    segmenter = IndexSegmenter(None, "truth", None, "cpu")  # type: ignore[arg-type]  # the truth reads nothing
    for raw in (f"The highlighted element in the image is a {named} background", "", "I'm sorry, no"):
        found_by = find_overlaps(batch, trials.said([said(raw)]), segmenter)
        trials.add(Try(asked, 1.0), batch, [said(raw)], found_by)
    with np.load(io.BytesIO(trials.packed().data)) as packed:
        assert packed["text"].tolist() == [f"{named.capitalize()} background", "", ""]
        assert packed["feature"].tolist() == [7, 7, 7] and packed["alpha"].tolist() == [1, 1, 1]
        assert packed["iou"][0] == pytest.approx(np.mean(overlaps)) and np.isnan(packed["iou"][1:]).all()


def test_texts_of_all_alphas_are_looked_for_once_in_an_image_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segmenter that keeps what it knows of few images reads each of them once."""
    looked: list[tuple[str, str]] = []
    masks = IndexSegmenter.masks

    def count(self: IndexSegmenter, pixels_CIJ: torch.Tensor, uri: str, text: str) -> torch.Tensor:
        looked.append((uri, text))
        return masks(self, pixels_CIJ, uri, text)

    monkeypatch.setattr(IndexSegmenter, "masks", count)
    maps = torch.ones(2, 2, 8, 8)
    shown = [[TopImage(str(i), i, f"{WORLD}#{i}", torch.ones(8, 8)) for i in of] for of in ((3, 4), (5, 6))]
    features = [Feature(number, True, 1.0, 1.0) for number in (7, 8)]
    batch = Batch(features, shown, torch.zeros(2, 2, 3, 64, 64, dtype=torch.uint8), maps)
    said = [Said(place, text, "union") for text in ("A star", "A ring", "A star") for place in (0, 1)]
    found = find_overlaps(batch, said, IndexSegmenter(None, "truth", None, "cpu"))  # type: ignore[arg-type]
    assert looked == [(f"{WORLD}#{i}", text) for i in (3, 4, 5, 6) for text in ("A ring", "A star")]
    assert found.keys() == set(said)
