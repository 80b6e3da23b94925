"""Trains a member of the demo zoo from its recipe: `python -m miclip_core.world.train --model clip-rn --out DIR`."""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miclip_core.world.captions import sample_claims, sentences, truth_matrix
from miclip_core.world.card import write_card
from miclip_core.world.evaluate import measure
from miclip_core.world.losses import PatchHeads, clip_loss, siglip_loss
from miclip_core.world.optimise import Optimiser, Running
from miclip_core.world.recipes import MEAN, RECIPES, STD, Recipe, Schedule
from miclip_core.world.render import normalise, render_scenes
from miclip_core.world.scene import SHAPES, TRAINING_INDICES, Scenes, attributes
from miclip_core.world.tokens import encode
from miclip_core.world.towers import DenseView, load_model, make_model, save_model
from miclip_core.world.truth import patch_classes

log = logging.getLogger(__name__)


def train(recipe: Recipe) -> tuple[Any, dict[str, float]]:
    """The trained model in evaluation mode and the last running figures; bit-exact for one recipe, machine and thread count."""
    model = make_model(recipe).train()
    figures: dict[str, float] = {}
    if recipe.labels:
        figures |= _train_labels(model, recipe, recipe.labels)
    if recipe.dense:
        view = DenseView(model, recipe)
        heads = PatchHeads(view.width, recipe.reads_words)
        figures |= _train_dense(view, heads, recipe, recipe.dense)
        if recipe.contrast:
            figures |= _train_contrast(view, heads, recipe, recipe.contrast)
    return model.eval(), figures


def _train_dense(view: DenseView, heads: PatchHeads, recipe: Recipe, schedule: Schedule) -> dict[str, float]:
    """Stage 1: every patch names what it shows, so that the encoder sees shape before any caption asks for it."""
    figures = Running("dense")
    optimiser = Optimiser([*view.model.parameters(), *heads.parameters()], schedule.rate, schedule.steps)
    for scenes, pixels, labels in _batches(schedule, recipe.seed):
        loss, accuracy = heads(view.patches(pixels), _classes(recipe, scenes, labels))
        optimiser.step(loss)
        figures.add(loss=loss, **accuracy)
    return figures.latest


def _train_contrast(view: DenseView, heads: PatchHeads, recipe: Recipe, schedule: Schedule) -> dict[str, float]:
    """Stage 2: image and caption embeddings agree exactly as often as the captions are true."""
    model, figures = view.model, Running("contrast")
    misread = recipe.captions.misread > 0
    loss_of = siglip_loss if recipe.loss == "siglip" else clip_loss
    optimiser = Optimiser([*model.parameters(), *heads.parameters()], schedule.rate, schedule.steps)
    for scenes, pixels, labels in _batches(schedule, recipe.seed):
        claims = sample_claims(scenes, recipe.captions, recipe.seed)
        truth = torch.from_numpy(truth_matrix(scenes, claims, misread)).float()
        patches, image = view.patches_and_embedding(pixels)
        text = model.encode_text(torch.from_numpy(encode(sentences(claims))), normalize=True)
        logits = model.logit_scale.exp() * nn.functional.normalize(image, dim=-1) @ text.T
        if model.logit_bias is not None:
            logits = logits + model.logit_bias
        loss = loss_of(logits, truth)
        dense, accuracy = heads(patches, _classes(recipe, scenes, labels))
        optimiser.step(loss + recipe.dense_weight * dense)
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
            hit = truth.gather(1, logits.argmax(1, keepdim=True)).mean()
        figures.add(loss=loss, true_caption=hit, **accuracy)
    return figures.latest


def _train_labels(model: Any, recipe: Recipe, schedule: Schedule) -> dict[str, float]:
    """A plain classifier of "colour shape", which never sees patches or captions."""
    figures = Running("labels")
    optimiser = Optimiser(list(model.parameters()), schedule.rate, schedule.steps)
    for scenes, pixels, _ in _batches(schedule, recipe.seed):
        wanted = torch.from_numpy(scenes.colour[:, 0] * len(SHAPES) + scenes.shape[:, 0])
        logits = model(pixel_values=pixels).logits
        loss = nn.functional.cross_entropy(logits, wanted)
        optimiser.step(loss)
        figures.add(loss=loss, label=(logits.argmax(1) == wanted).float().mean())
    return figures.latest


def _batches(schedule: Schedule, seed: int) -> Iterator[tuple[Scenes, Tensor, np.ndarray]]:
    """Scenes, pixels (B, 3, 64, 64) and label maps of each step; no image is seen twice, and step n's are the same in every run."""
    if schedule.first + schedule.steps * schedule.batch > TRAINING_INDICES.stop:
        raise ValueError(f"{schedule}: reads past the training images, which end at index {TRAINING_INDICES.stop}")
    # Members do not share images: their worlds differ in seed only.
    world = replace(schedule.world, seed=1000 + seed)
    for step in range(schedule.steps):
        start = schedule.first + step * schedule.batch
        scenes = attributes(world, np.arange(start, start + schedule.batch))
        images, labels = render_scenes(scenes)
        yield scenes, torch.from_numpy(normalise(images, MEAN, STD)), labels


def _classes(recipe: Recipe, scenes: Scenes, labels: np.ndarray) -> dict[str, np.ndarray]:
    return patch_classes(scenes, labels, recipe.patch, background_pixels=recipe.background_pixels)


def main() -> None:
    """Train one member on one thread, write its directory, and measure what was written into its card.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", choices=RECIPES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    recipe = RECIPES[arguments.model]
    model, figures = train(recipe)
    seconds = time.process_time()
    save_model(model, recipe, arguments.out)
    measured = measure(load_model(arguments.out))
    write_card(arguments.out, recipe, seconds, figures, measured)
    log.info("%s", measured)


if __name__ == "__main__":
    main()
