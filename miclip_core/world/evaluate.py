"""Measures what a zoo member knows and which biases were planted in it, on images that no training can have seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miclip_core.world.captions import sentences, value_claims
from miclip_core.world.recipes import MEAN, STD
from miclip_core.world.render import render_scenes, normalise
from miclip_core.world.scene import HELD_OUT_INDICES, PLANTED, SHAPES, Scenes, World, attributes
from miclip_core.world.tokens import encode

ONE_OBJECT = World(seed=1, objects=(0, 1), text=0, watermark=0)
_BATCH = 128
_STAR = SHAPES.index("star")


def held_out(n: int, world: World = ONE_OBJECT) -> Scenes:
    """The first n held-out scenes, by default of one object without text or mark."""
    return attributes(world, np.arange(n) + HELD_OUT_INDICES.start)


def pixels_of(scenes: Scenes) -> Tensor:
    """The images of `scenes` as the members take them: (B, 3, 64, 64) float32."""
    return torch.from_numpy(normalise(render_scenes(scenes)[0], MEAN, STD))


@torch.no_grad()
def predict(model: Any, scenes: Scenes, category: str) -> np.ndarray:
    """The value of `category` that the model sees in each scene, (B,): zero-shot for a CLIP, from the class for a classifier."""
    is_clip = hasattr(model, "encode_text")
    if is_clip:
        prompts = torch.from_numpy(encode(sentences(value_claims(category))))
        classes = model.encode_text(prompts, normalize=True)
    found = []
    for start in range(0, len(scenes), _BATCH):
        pixels = pixels_of(scenes[start : start + _BATCH])
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


def measure(model: Any, n: int = 1800) -> dict[str, dict[str, float]]:
    """Every figure that applies to the model, rounded for its card; none for a tower without names."""
    if not hasattr(model, "encode_text") and not hasattr(model, "classifier"):
        return {}
    found = {"accuracy": accuracies(model, n), "watermark": watermark_bias(model, n)}
    found["typography"] = typographic_attack(model, n)
    return {group: {name: round(value, 4) for name, value in figures.items()} for group, figures in found.items()}
