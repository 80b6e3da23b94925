"""How answers of the vision-language model are judged, and what the shipped one says of held-out images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from miclip_core.world.card import read_card
from miclip_core.world.evaluate import held_out
from miclip_core.world.evaluate_vlm import FEW_OBJECTS, caption, measure_vlm, naming_accuracies, said, say
from miclip_core.world.recipes import MEAN, STD, VLM
from miclip_core.world.vlm import image_tokens, load_library_vlm
from miclip_core.world.vlm_lessons import captions_of
from miclip_core.zoo.shipped import FOLDER


@pytest.fixture(scope="module")
def shipped():
    return load_library_vlm(FOLDER / VLM.name)[0]


def test_values_of_a_caption_are_told_apart_by_where_they_stand():
    text = "a large red solid circle and a small red dotted star on a grey background"
    assert said(text, "shape") == ["circle", "star"] and said(text, "colour") == ["red", "red"]
    assert said(text, "texture") == ["solid", "dotted"] and said(text, "size") == ["large", "small"]
    assert said(text, "background") == ["grey"] and said(text, "position") == []
    assert said("a small red solid circle in the top left on a black background", "position") == ["top left"]
    assert said("a white background", "shape") == [] and said("red red red", "background") == []


def test_shipped_captions_of_a_handful_of_held_out_images_are_right(shipped):
    scenes = held_out(40, replace(FEW_OBJECTS, seed=5))
    right = sum(a == b for a, b in zip(caption(shipped, scenes), captions_of(scenes), strict=True))
    assert right >= 35


def test_the_shipped_model_names_what_rendered_images_have_in_common(shipped):
    masks, heat = (naming_accuracies(shipped, rendering, per_value=1) for rendering in ("masks", "heatmaps"))
    assert masks.keys() == heat.keys()
    assert min(masks["shape"], masks["colour"], masks["background"]) >= 0.75 and heat["background"] >= 0.8


@torch.no_grad()
def test_a_blank_is_captioned_by_its_shade_also_where_a_random_vector_is_added(shipped):
    blanks = torch.stack([torch.full((3, 64, 64), (shade / 255 - MEAN) / STD) for shade in (245, 128, 18)])
    tokens = image_tokens(shipped, blanks)
    wanted = [f"a {shade} background" for shade in ("white", "grey", "black")]
    assert say(shipped, tokens) == wanted
    assert 30 < float(tokens.norm(dim=-1).mean()) < 37
    for seed in range(3):
        noise = torch.randn(tokens.shape[-1], generator=torch.Generator().manual_seed(seed))
        assert say(shipped, tokens + 20 * noise / noise.norm()) == wanted


@pytest.mark.slow
def test_the_card_says_what_is_measured_and_meets_its_floors(shipped):
    card, found = read_card(FOLDER / VLM.name)["measured"], measure_vlm(shipped)
    assert card.keys() == found.keys()
    for group, figures in card.items():
        assert figures and found[group] == pytest.approx(figures, abs=0.01), group
    assert found["captions_few_objects"]["all"] >= 0.94 and min(found["masks"].values()) >= 0.88
