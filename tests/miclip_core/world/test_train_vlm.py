"""The trainer of the vision-language model: same recipe, same weights; the loss of each lesson falls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from miclip_core.world.recipes import VLM, VlmStage
from miclip_core.world.scene import World
from miclip_core.world.train_vlm import train_vlm

SMALL = replace(
    VLM,
    architecture={**VLM.architecture, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1},
    stages=(
        VlmStage(World(), 20, 1e-2, 0, captions=6),
        VlmStage(World(), 100, 1e-2, 120, captions=6, collages=2, common=2),
    ),
)
SHORT = replace(SMALL, stages=tuple(replace(stage, steps=2) for stage in SMALL.stages))


def test_training_is_reproducible_leaves_the_tower_alone_and_learns():
    first, again = (train_vlm(SHORT)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    vlm, figures = train_vlm(SMALL)
    tower, at_first = (model.model.vision_tower.state_dict() for model in (vlm, first))
    assert all(torch.equal(tower[name], weight) for name, weight in at_first.items())
    # Of 48 words at random: log 48 is 3.9. The means are over the last 50 steps.
    assert figures["stage_2_caption"] < 2.3 and figures["stage_2_collage"] < 2.3 and figures["stage_2_common"] < 2.3


def test_a_recipe_that_reads_past_the_training_images_is_refused():
    with pytest.raises(ValueError, match="past the training images"):
        train_vlm(replace(SMALL, stages=(VlmStage(World(), 1, 1e-2, 999_999, captions=2),)))
