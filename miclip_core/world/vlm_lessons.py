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
from miclip_core.world.vlm import IMAGE, image_tokens, project_tokens

# How often a group of images has a value of the category in common, and how often a collage shows one.
SHARES = {"shape": 0.3, "colour": 0.22, "texture": 0.18, "size": 0.1, "background": 0.2}
MOST_IMAGES = 5
PATCH = 8  # pixels on a side, of the tower
_MOST_DROPPED, _MOST_FALSE = 0.5, 0.05  # shares of patches at which a map may be wrong, drawn for each image
_LOCAL = 0.7  # share of the collages that leave a scene around them
_SCATTERED = 0.4  # of these: in single patches
_BLOCK = (2, 5)  # patches on a side of the other collages in a scene
_MASKED = 0.4  # of the groups; the rest is shown as heatmaps, which are harder to read
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
        shown = {"image": project_tokens(vlm, self.tokens)}
        return vlm(input_ids=torch.cat([images, words], 1), mm_encoder_outputs=shown, labels=labels).loss


def captions_of(scenes: Scenes) -> list[str]:
    """The full caption of each scene, its objects in the order in which one reads: from the top left to the bottom right.

    Nothing is said of rendered words: the tower was never taught to read them.
    """
    order = np.argsort(np.where(scenes.position < 0, len(CONCEPTS["position"]), scenes.position), axis=1, kind="stable")
    fields = {field: np.take_along_axis(getattr(scenes, field), order, 1) for field in OBJECT_FIELDS}
    return sentences(full_claims(replace(scenes, **fields, word=np.full_like(scenes.word, ANY))))


def caption_lesson(vlm: Any, scenes: Scenes) -> tuple[Lesson, np.ndarray]:
    """One whole image and its full caption per scene; and the label maps of the images."""
    images, labels = render_scenes(scenes)
    tokens = image_tokens(vlm, torch.from_numpy(normalise(images, MEAN, STD)))
    return Lesson(tokens, captions_of(scenes)), labels


def collage_lesson(tokens_BPD: Tensor, scenes: Scenes, labels: np.ndarray, n: int, rng: np.random.Generator) -> Lesson:
    """Collages of patches that show one value, taken from all images, and that value: "a red object".

    Most of those of an object's values lie in a scene without objects, scattered or as a block, and its background is
    said too: "a red object on a grey background". Nothing but tokens of real images is ever shown: the model that reads
    what steering adds to tokens was not taught what is added.
    """
    classes = patch_classes(scenes, labels, PATCH)
    share = np.array([how_often * (classes[name] >= 0).any() for name, how_often in SHARES.items()])
    empty = np.flatnonzero((scenes.count == 0) & (scenes.word < 0) & ~scenes.watermark)
    collages, answers = [], []
    for category in rng.choice([*SHARES], n, p=share / share.sum()):
        shown = np.argwhere(classes[category] >= 0)
        value = int(classes[category][tuple(shown[rng.integers(len(shown))])])
        collage = _draw(tokens_BPD[torch.from_numpy(classes[category] == value)], tokens_BPD.shape[1], rng)
        answer = value_sentence(category, value)
        if category in OBJECT_FIELDS and len(empty) and rng.random() < _LOCAL:
            below = int(rng.choice(empty))
            seen = torch.from_numpy(_some_patches(int(len(collage) ** 0.5), rng))
            collage = torch.where(seen[:, None], collage, tokens_BPD[below])
            answer += f" on {value_sentence('background', int(scenes.background[below]))}"
        collages.append(collage)
        answers.append(answer)
    return Lesson(torch.stack(collages), answers)


def _some_patches(side: int, rng: np.random.Generator) -> np.ndarray:
    """Which of the patches show the collage, bool [side * side]: scattered ones, or a block."""
    if rng.random() < _SCATTERED:
        return rng.random(side * side) < rng.uniform(0.1, 0.9)
    height, width = rng.integers(_BLOCK[0], _BLOCK[1] + 1, 2)
    y, x = rng.integers(side - height + 1), rng.integers(side - width + 1)
    block = np.zeros((side, side), bool)
    block[y : y + height, x : x + width] = True
    return block.ravel()


def _draw(tokens_ND: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    """Some of the tokens, with replacement: [n, d]."""
    return tokens_ND[torch.from_numpy(rng.integers(len(tokens_ND), size=n))]


def value_sentence(category: str, value: int) -> str:
    """What is said of a value alone: "a circle", "a red object", "a grey background"."""
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
    masked = torch.from_numpy(np.repeat(rng.random(groups) < _MASKED, images))
    pixels, maps = draw_with_maps(show_values(scenes, *each), *each, rng)
    rendered = torch.where(masked[:, None, None, None], mask_image(pixels, maps), heat_image(pixels, maps))
    answers = [value_sentence(name, number) for name, number in zip(category, value, strict=True)]
    return Lesson(image_tokens(vlm, as_input(rendered)), answers)


def show_values(scenes: Scenes, category_B: np.ndarray, value_B: np.ndarray) -> Scenes:
    """The scenes, each changed so that it shows a value of a category: its first object or its background does."""
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
