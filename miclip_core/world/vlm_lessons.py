"""What the demo zoo's vision-language model is taught: image tokens, and what to say of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miclip_core.explain.render import heat_image, mask_image
from miclip_core.world.captions import ANY, full_claims, sentences, value_claims
from miclip_core.world.recipes import MEAN, STD
from miclip_core.world.render import normalise, render_scenes
from miclip_core.world.scene import CONCEPTS, IMAGE_SIZE, OBJECT_FIELDS, Scenes
from miclip_core.world.tokens import PAD, encode
from miclip_core.world.truth import patch_classes
from miclip_core.world.vlm import IMAGE, image_tokens, project

# How often a group of images has a value of the category in common, and how often a collage shows one.
SHARES = {"shape": 0.3, "colour": 0.24, "texture": 0.16, "size": 0.07, "background": 0.18, "word": 0.05}
MOST_IMAGES = 5
PATCH = 8  # pixels on a side, of the tower
_MOST_DROPPED, _MOST_FALSE = 0.5, 0.05  # shares of patches at which a map may be wrong, drawn for each image
_COLLAGES, _NOISE = 1 / 3, 1 / 6  # of the lessons about one value
_HALF = IMAGE_SIZE // 2
_SPREAD = 0.4  # of the logarithm of an active patch's value


@dataclass(frozen=True)
class Lesson:
    """B questions of the same number of images: their tokens [B * images, P, d], and the B answers."""

    tokens: Tensor
    answers: list[str]

    def loss(self, vlm: Any) -> Tensor:
        """Mean cross-entropy of the answers' words, the end among them."""
        words = torch.from_numpy(encode(self.answers))
        words = words[:, : int((words != PAD).sum(1).max())]
        images = torch.full((len(words), self.tokens.shape[0] * self.tokens.shape[1] // len(words)), IMAGE)
        ignored = torch.full_like(images, -100)
        labels = torch.cat([ignored, words.masked_fill(words == PAD, -100)], 1)
        labels[:, images.shape[1]] = -100  # the begin is given
        shown = {"image": project(vlm, self.tokens)}
        return vlm(input_ids=torch.cat([images, words], 1), mm_encoder_outputs=shown, labels=labels).loss


def captions_of(scenes: Scenes, words: bool = False) -> list[str]:
    """The full caption of each scene, its objects in the order in which one reads: from the top left to the bottom right.

    Rendered words are left out unless they are asked for.
    """
    order = np.argsort(np.where(scenes.position < 0, len(CONCEPTS["position"]), scenes.position), axis=1, kind="stable")
    fields = {field: np.take_along_axis(getattr(scenes, field), order, 1) for field in OBJECT_FIELDS}
    fields["word"] = scenes.word if words else np.full_like(scenes.word, ANY)
    return sentences(full_claims(replace(scenes, **fields)))


def caption_lesson(vlm: Any, scenes: Scenes, words: bool = False) -> tuple[Lesson, np.ndarray]:
    """One whole image and its full caption per scene; and the label maps of the images."""
    images, labels = render_scenes(scenes)
    tokens = image_tokens(vlm, torch.from_numpy(normalise(images, MEAN, STD)))
    return Lesson(tokens, captions_of(scenes, words)), labels


def collage_lesson(
    tokens_BPD: Tensor,
    scenes: Scenes,
    labels: np.ndarray,
    n: int,
    rng: np.random.Generator,
    strengths: tuple[float, float],
) -> Lesson:
    """Tokens in which nothing but one value stands out, made from those of whole images, and that value: "a red object".

    A third are collages of patches that show the value, taken from all images; half have added to the tokens of a scene
    without objects, as often as not to all of them, how patches with the value differ from others; the rest have a
    random direction of that length added, which says nothing, so that the scene alone is to be described. `strengths`:
    least and most of what is added, as a multiple of that difference.
    """
    classes = patch_classes(scenes, labels, PATCH)
    share = np.array([how_often * (classes[name] >= 0).any() for name, how_often in SHARES.items()])
    empty = np.flatnonzero((scenes.count == 0) & (scenes.word < 0) & ~scenes.watermark)
    collages, answers = [], []
    for category in rng.choice([*SHARES], n, p=share / share.sum()):
        shown = np.argwhere(classes[category] >= 0)
        value = int(classes[category][tuple(shown[rng.integers(len(shown))])])
        fits = tokens_BPD[torch.from_numpy(classes[category] == value)]
        kind, answer = rng.random(), value_sentence(category, value)
        below = int(rng.choice(empty)) if len(empty) else 0
        if kind < _COLLAGES or not len(empty):
            collage = _draw(fits, tokens_BPD.shape[1], rng)
        else:
            others = tokens_BPD if rng.random() < 0.5 else tokens_BPD[torch.from_numpy(classes[category] >= 0)]
            added = _draw(fits, int(2 ** rng.integers(4)), rng).mean(0) - others.flatten(0, -2).mean(0)
            if kind > 1 - _NOISE:
                noise = torch.from_numpy(rng.standard_normal(len(added))).float()
                added = noise * (added.norm() / noise.norm())
                answer = value_sentence("background", int(scenes.background[below]))
            collage = tokens_BPD[below] + rng.uniform(*strengths) * added
        if kind <= 1 - _NOISE and category in OBJECT_FIELDS and len(empty) and rng.random() < 0.5:
            seen = torch.from_numpy(rng.random(len(collage)) < rng.uniform(0.1, 0.9))
            collage = torch.where(seen[:, None], collage, tokens_BPD[below])
            answer += f" on {value_sentence('background', int(scenes.background[below]))}"
        collages.append(collage)
        answers.append(answer)
    return Lesson(torch.stack(collages), answers)


def _draw(tokens_ND: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    """Some of the tokens, with replacement: [n, d]."""
    return tokens_ND[torch.from_numpy(rng.integers(len(tokens_ND), size=n))]


def value_sentence(category: str, value: int) -> str:
    """What is said of a value alone: "a circle", "a red object", "a grey background", "the word red"."""
    return _value_sentences(category)[value]


@functools.cache
def _value_sentences(category: str) -> list[str]:
    return sentences(value_claims(category))


def common_lesson(vlm: Any, scenes: Scenes, images: int, rng: np.random.Generator) -> Lesson:
    """Groups of rendered images, each with a planted value that all of them share, and that value.

    The scenes are changed so that they show the value; where they do is what masks and heatmaps show, with errors.
    """
    groups = len(scenes) // images
    category = rng.choice([*SHARES], groups, p=[*SHARES.values()])
    value = np.array([rng.integers(len(CONCEPTS[name])) for name in category])
    each = np.repeat(category, images), np.repeat(value, images)
    masked = torch.from_numpy(np.repeat(rng.random(groups) < 0.5, images))
    pixels, maps = draw_with_maps(show_values(scenes, *each), *each, rng)
    rendered = torch.where(masked[:, None, None, None], mask_image(pixels, maps), heat_image(pixels, maps))
    answers = [value_sentence(name, number) for name, number in zip(category, value, strict=True)]
    return Lesson(image_tokens(vlm, as_input(rendered)), answers)


def show_values(scenes: Scenes, category_B: np.ndarray, value_B: np.ndarray) -> Scenes:
    """The scenes, each changed so that it shows a value of a category: its first object, its background or its word does."""
    changed: dict[str, np.ndarray] = {}
    for name in SHARES:
        field = getattr(scenes, name).copy()
        (field[:, 0] if field.ndim == 2 else field)[category_B == name] = value_B[category_B == name]
        changed[name] = field
    grown = (changed["size"] != scenes.size)[:, 0]  # and may reach out of the image where the smaller one was
    for axis in ("x", "y"):
        changed[axis] = getattr(scenes, axis).copy()
        changed[axis][grown, 0] = changed[axis][grown, 0] // _HALF * _HALF + _HALF // 2
    return replace(scenes, **changed)


def draw_with_maps(
    scenes: Scenes, category_B: np.ndarray, value_B: np.ndarray, rng: np.random.Generator, errors: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The images uint8 [B, 3, h, w], and maps [B, gh, gw] of the patches that show each one's value, as a feature's might be.

    Some patches that show it are left out and some that do not are active, `errors` times as many as in training.
    """
    images, labels = render_scenes(scenes)
    classes = patch_classes(scenes, labels, PATCH)
    shows = np.stack([classes[name][b] == value_B[b] for b, name in enumerate(category_B)])
    dropped, false = (
        rng.random(shows.shape) < errors * most * rng.random((len(shows), 1)) for most in (_MOST_DROPPED, _MOST_FALSE)
    )
    active = (shows & ~dropped) | (~shows & false)
    active = np.where((active & shows).any(1, keepdims=True), active, shows)
    maps = active * np.exp(_SPREAD * rng.standard_normal(active.shape))
    side = labels.shape[1] // PATCH
    return torch.from_numpy(images.transpose(0, 3, 1, 2)), torch.from_numpy(maps).reshape(-1, side, side)


def as_input(pixels_BCHW: Tensor) -> Tensor:
    """uint8 images as the tower takes them."""
    return torch.from_numpy(normalise(pixels_BCHW.permute(0, 2, 3, 1).numpy(), MEAN, STD))
