"""Measures what the demo zoo's vision-language model says of images that no training can have seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from miclip_core.explain.render import heat_image, mask_image
from miclip_core.world.evaluate import held_out
from miclip_core.world.reading import read
from miclip_core.world.recipes import MEAN, STD
from miclip_core.world.render import normalise, render_scenes
from miclip_core.world.scene import CONCEPTS, OBJECT_FIELDS, Scenes, World
from miclip_core.world.tokens import BOS, EOS, VOCABULARY
from miclip_core.world.vlm import IMAGE, image_tokens, project_tokens
from miclip_core.world.vlm_lessons import SHARES, as_input, captions_of, draw_with_maps, show_values, value_sentence

_BATCH = 100  # images
_GROUPS = 20
_LONGEST = 40  # words of an answer
CATEGORIES = (*OBJECT_FIELDS, "background")
FEW_OBJECTS = World(seed=1, objects=(0.05, 0.57, 0.38))
AN_OBJECT = World(seed=1, objects=(0, 0.5, 0.3, 0.1, 0.1))


@torch.no_grad()
def say(vlm: Any, tokens_RPD: Tensor, images: int = 1) -> list[str]:
    """The most likely words of each question, which shows `images` images by the tokens that the projector reads."""
    questions = len(tokens_RPD) // images
    ids = torch.full((questions, images * tokens_RPD.shape[1] + 1), IMAGE)
    ids[:, -1] = BOS
    seen = {"image": project_tokens(vlm, tokens_RPD)}
    out = vlm.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_encoder_outputs=seen, max_new_tokens=_LONGEST
    )
    answers = []
    for row in out[:, ids.shape[1] :].tolist():
        words = row[: row.index(EOS)] if EOS in row else row
        answers.append(" ".join(VOCABULARY[word] if word < len(VOCABULARY) else "<image>" for word in words))
    return answers


def caption(vlm: Any, scenes: Scenes) -> list[str]:
    """What the model says of each scene's image."""
    answers = []
    for start in range(0, len(scenes), _BATCH):
        images = render_scenes(scenes[slice(start, start + _BATCH)])[0]
        answers += say(vlm, image_tokens(vlm, torch.from_numpy(normalise(images, MEAN, STD))))
    return answers


def said(text: str, category: str) -> list[str]:
    """The values of a category in a caption, in the order in which they are said."""
    found = read(text)
    if category == "background":
        return [found.background] if found.background else []
    return [phrase[category] for phrase in found.objects if category in phrase]


def caption_accuracies(vlm: Any, n: int = 1000, world: World | None = None) -> dict[str, float]:
    """The share of n held-out images whose caption is right: in all words, in how many objects, and per category in all values."""
    scenes = held_out(n, world or World(seed=1))
    truths, answers = captions_of(scenes), caption(vlm, scenes)
    pairs = [*zip(truths, answers, strict=True)]
    found = {"all": np.mean([truth == answer for truth, answer in pairs])}
    found["count"] = np.mean([len(said(truth, "shape")) == len(said(answer, "shape")) for truth, answer in pairs])
    for category in CATEGORIES:
        # Where the caption of the truth says nothing of a category, there is nothing to get right but saying nothing.
        asked = [(said(t, category), said(a, category)) for t, a in pairs if said(t, category)]
        found[category] = np.mean([truth == answer for truth, answer in asked])
    return {name: float(share) for name, share in found.items()}


def naming_accuracies(
    vlm: Any, rendering: str, images: int = 5, per_value: int = 10, errors: float = 0.0
) -> dict[str, float]:
    """Per category, the share of groups of held-out images that share a value, shown where it is, of which the model says just that value.

    rendering: "masks" or "heatmaps". errors: of the maps, as a multiple of those in training. Ten groups per
    value, which makes 280.
    """
    values = [(name, number) for name in SHARES for number in range(len(CONCEPTS[name])) for _ in range(per_value)]
    category, value = (np.array(part) for part in zip(*values, strict=True))
    each = np.repeat(category, images), np.repeat(value, images)
    scenes = show_values(held_out(len(each[0]), AN_OBJECT), *each)
    pixels, maps = draw_with_maps(scenes, *each, np.random.default_rng(0), errors)
    rendered = mask_image(pixels, maps) if rendering == "masks" else heat_image(pixels, maps)
    answers = []
    for part in rendered.split(_GROUPS * images):
        answers += say(vlm, image_tokens(vlm, as_input(part)), images)
    right = np.array([a == value_sentence(c, v) for a, c, v in zip(answers, category, value, strict=True)])
    return {name: float(right[category == name].mean()) for name in SHARES}


def measure_vlm(vlm: Any) -> dict[str, dict[str, float]]:
    """Every figure, rounded for the card: captions of whole images, all and those of two objects at most, and what five images have in common."""
    found = {"captions": caption_accuracies(vlm), "captions_few_objects": caption_accuracies(vlm, world=FEW_OBJECTS)}
    found |= {rendering: naming_accuracies(vlm, rendering) for rendering in ("masks", "heatmaps")}
    return {group: {name: round(value, 4) for name, value in figures.items()} for group, figures in found.items()}
