"""Trains the vision-language model of the demo zoo: `python -m miclip_core.world.train_vlm --out DIR`."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from miclip_core.world.card import write_card
from miclip_core.world.evaluate_vlm import measure_vlm
from miclip_core.world.optimise import Optimiser, Running
from miclip_core.world.recipes import VLM, VlmRecipe
from miclip_core.world.scene import TRAINING_INDICES, Scenes, World, attributes
from miclip_core.world.vlm import load_library_vlm, make_vlm, save_vlm
from miclip_core.world.vlm_lessons import MOST_IMAGES, caption_lesson, collage_lesson, common_lesson

log = logging.getLogger(__name__)
_GROUPS_FIRST = 500_000  # index of the first training image that is shown in a group
_AN_OBJECT = (0.0, 0.5, 0.3, 0.1, 0.1)


def train_vlm(recipe: VlmRecipe) -> tuple[Any, dict[str, float]]:
    """The trained model and its last running figures; bit-exact for one recipe, machine and thread count."""
    vlm = make_vlm(recipe).train()
    figures: dict[str, float] = {}
    for number in range(len(recipe.stages)):
        figures |= train_stage(vlm, recipe, number)
        for weight in vlm.parameters():  # a stage begins with what the files of the one before hold
            weight.data = weight.data.half().float()
    return vlm.eval(), figures


def train_stage(vlm: Any, recipe: VlmRecipe, number: int) -> dict[str, float]:
    """Go through one stage of the recipe; gives the last running figures."""
    stage = recipe.stages[number]
    optimiser = Optimiser([p for p in vlm.parameters() if p.requires_grad], stage.rate, stage.steps)
    figures = Running(f"stage_{number + 1}")
    grouped = _GROUPS_FIRST + MOST_IMAGES * sum(earlier.steps * earlier.common for earlier in recipe.stages[:number])
    for step in range(stage.steps):
        one, other = (np.random.default_rng([recipe.seed, number, step, part]) for part in range(2))
        scenes = _scenes(recipe, stage.world, stage.first + step * stage.captions, stage.captions)
        lesson, labels = caption_lesson(vlm, scenes)
        losses = {"caption": lesson.loss(vlm)}
        if stage.collages:
            collages = collage_lesson(lesson.tokens, scenes, labels, stage.collages, one)
            losses["collage"] = collages.loss(vlm)
        if stage.common:
            images = 2 + step % (MOST_IMAGES - 1)
            world = replace(stage.world, objects=_AN_OBJECT)
            group = _scenes(recipe, world, grouped + step * stage.common * MOST_IMAGES, stage.common * images)
            losses["common"] = common_lesson(vlm, group, images, other).loss(vlm)
        optimiser.step(torch.stack([*losses.values()]).sum())
        figures.add(**losses)
    return figures.latest


def _scenes(recipe: VlmRecipe, world: World, first: int, n: int) -> Scenes:
    if first + n > TRAINING_INDICES.stop:
        raise ValueError(f"{recipe}: reads past the training images, which end at index {TRAINING_INDICES.stop}")
    return attributes(replace(world, seed=1000 + recipe.seed), np.arange(first, first + n))


def main() -> None:
    """Train the model on one thread, write its directory, and measure what was written into its card.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    vlm, figures = train_vlm(VLM)
    seconds = time.process_time()
    save_vlm(vlm, arguments.out)
    measured = measure_vlm(load_library_vlm(arguments.out)[0])
    write_card(arguments.out, VLM, seconds, figures, measured)
    log.info("%s", measured)


if __name__ == "__main__":
    main()
