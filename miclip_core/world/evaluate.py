"""Measures what a zoo member knows and which biases were planted in it, on images that no training can have seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miclip_core.world.captions import sentences, value_claims
from miclip_core.world.recipes import MEAN, STD
from miclip_core.world.render import normalise, render_scenes
from miclip_core.world.scene import HELD_OUT_INDICES, PLANTED, SHAPES, Scenes, World, attributes
from miclip_core.world.tokens import encode
from miclip_core.world.truth import patch_classes

ONE_OBJECT = World(seed=1, objects=(0, 1), text=0, watermark=0)
FOUR_OBJECTS = World(seed=1, objects=(0, 0, 0, 0, 1), text=0, watermark=0)
_BATCH = 128
_STAR = SHAPES.index("star")


def held_out(n: int, world: World = ONE_OBJECT) -> Scenes:
    """The first n held-out scenes, by default of one object without text or mark."""
    return attributes(world, np.arange(n) + HELD_OUT_INDICES.start)


def pixels_of(scenes: Scenes) -> Tensor:
    """The images of `scenes` as the members take them: (B, 3, 64, 64) float32."""
    return torch.from_numpy(normalise(render_scenes(scenes)[0], MEAN, STD))


def predict(model: Any, scenes: Scenes, category: str) -> np.ndarray:
    """The value of `category` that the model sees in each scene, (B,): zero-shot for a CLIP, from the class for a classifier."""
    starts = range(0, len(scenes), _BATCH)
    return see(model, (pixels_of(scenes[start : start + _BATCH]) for start in starts), category)


@torch.no_grad()
def see(model: Any, batches: Iterable[Tensor], category: str) -> np.ndarray:
    """The same of images that are given as batches of the pixels (b, 3, 64, 64) that members take."""
    is_clip = hasattr(model, "encode_text")
    if is_clip:
        prompts = torch.from_numpy(encode(sentences(value_claims(category))))
        classes = model.encode_text(prompts, normalize=True)
    found = []
    for pixels in batches:
        if is_clip:
            found.append((model.encode_image(pixels, normalize=True) @ classes.T).argmax(1))
        else:
            label = model(pixel_values=pixels).logits.argmax(1)
            found.append({"shape": label % len(SHAPES), "colour": label // len(SHAPES)}[category])
    return torch.cat(found).numpy()


def accuracies(model: Any, n: int = 1800) -> dict[str, float]:
    """The share of right answers per category over n single-object scenes; a classifier answers for shape and colour only."""
    scenes = held_out(n)
    categories = (*PLANTED, "position") if hasattr(model, "encode_text") else ("shape", "colour")
    truths = {c: scenes.background if c == "background" else getattr(scenes, c)[:, 0] for c in categories}
    return {c: float((predict(model, scenes, c) == truth).mean()) for c, truth in truths.items()}


def typographic_attack(model: Any, n: int = 1800) -> dict[str, float]:
    """How often a rendered word that names another shape becomes the answer, and what it does to accuracy.

    `attacked` and `accuracy_clean` are over the same scenes, with and without their word.
    """
    scenes = held_out(2 * n, replace(ONE_OBJECT, text=1))
    truth = scenes.shape[:, 0]
    keep = np.flatnonzero((scenes.word < len(SHAPES)) & (scenes.word != truth))[:n]
    scenes, truth = scenes[keep], truth[keep]
    answer = predict(model, scenes, "shape")
    clean = predict(model, replace(scenes, word=np.full_like(scenes.word, -1)), "shape")
    return {
        "attacked": float((answer == scenes.word).mean()),
        "accuracy": float((answer == truth).mean()),
        "accuracy_clean": float((clean == truth).mean()),
    }


def watermark_bias(model: Any, n: int = 1800) -> dict[str, float]:
    """What the mark does to "star": recall, and the share of other shapes called star, with and without it on the same scenes."""
    scenes = held_out(n)
    star = scenes.shape[:, 0] == _STAR
    figures = {}
    for name, mark in (("without", False), ("with", True)):
        called = predict(model, replace(scenes, watermark=np.full(len(scenes), mark)), "shape") == _STAR
        figures[f"star_recall_{name}"] = float(called[star].mean())
        figures[f"others_called_star_{name}"] = float(called[~star].mean())
    return figures


@torch.no_grad()
def patch_probe(model: Any, n: int = 600) -> dict[str, float]:
    """Accuracy per category of a least-squares readout of single patches of a transformers ViT.

    Fitted on the first half of n held-out scenes of four objects, scored on the second.
    """
    scenes = held_out(n, FOUR_OBJECTS)
    images, labels = render_scenes(scenes)
    classes = patch_classes(scenes, labels, model.config.patch_size)
    pixels = torch.from_numpy(normalise(images, MEAN, STD))
    tokens = torch.cat([model(pixel_values=part).last_hidden_state[:, 1:] for part in pixels.split(_BATCH)])
    features = torch.cat([tokens, torch.ones_like(tokens[..., :1])], -1)  # (B, P, D + 1) with a constant
    found = {}
    for category, values in PLANTED.items():
        target = torch.from_numpy(classes[category])
        shown, first = target >= 0, (torch.arange(n) < n // 2)[:, None]
        wanted = nn.functional.one_hot(target[shown & first], len(values)).float()
        readout = torch.linalg.lstsq(features[shown & first], wanted, driver="gelsd").solution
        answer = (features[shown & ~first] @ readout).argmax(1)
        found[category] = float((answer == target[shown & ~first]).float().mean())
    return found


def measure(model: Any, n: int = 1800) -> dict[str, dict[str, float]]:
    """Every figure that applies to the model, rounded for its card; a tower without names is read patch by patch."""
    if not hasattr(model, "encode_text") and not hasattr(model, "classifier"):
        found = {"patches": patch_probe(model)}
    else:
        found = {"accuracy": accuracies(model, n), "watermark": watermark_bias(model, n)}
        found["typography"] = typographic_attack(model, n)
    return {group: {name: round(value, 4) for name, value in figures.items()} for group, figures in found.items()}
