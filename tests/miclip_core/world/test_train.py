"""The trainer does what it says: it learns, it repeats itself bit for bit, and it reads training images only."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from miclip_core.world import train as trainer
from miclip_core.world.evaluate import accuracies
from miclip_core.world.recipes import RECIPES
from miclip_core.world.scene import TRAINING_INDICES
from miclip_core.world.towers import make_model
from miclip_core.world.train import train

QUICK = RECIPES["quick"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_quick_recipe_learns_to_see_shapes_and_to_match_captions():
    model, figures = train(QUICK)
    assert figures["dense_shape"] > 0.55 and figures["dense_colour"] > 0.95  # chance: .125
    assert figures["contrast_true_caption"] > 0.5  # chance: the share of true pairs, about .15
    found = accuracies(model, 300)
    assert found["shape"] > 0.35 and found["colour"] > 0.4 and found["background"] > 0.8  # chance: .125, .125, .17


def _short(name, steps=3, batch=16):
    recipe = RECIPES[name]
    stages = ("dense", "contrast", "labels")
    cut = {s: replace(getattr(recipe, s), steps=steps, batch=batch) for s in stages if getattr(recipe, s)}
    return replace(recipe, **cut)


@pytest.mark.parametrize("name", ["clip-p8", "siglip-p8", "clip-rn-typo", "resnet-sup-wm", "vit-dense"])
def test_a_recipe_trains_to_the_same_bits_every_time(name):
    recipe = _short(name)
    first, again = train(recipe)[0].state_dict(), train(recipe)[0].state_dict()
    start = make_model(recipe).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], start[key]) for key in first)


def test_recipes_read_training_images_only_and_each_of_them_once():
    for recipe in RECIPES.values():
        stages = [stage for stage in (recipe.dense, recipe.contrast, recipe.labels) if stage]
        ranges = sorted((stage.first, stage.first + stage.steps * stage.batch) for stage in stages)
        assert ranges[0][0] >= TRAINING_INDICES.start and ranges[-1][1] <= TRAINING_INDICES.stop, recipe.name
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges)), recipe.name


def test_a_schedule_that_would_read_held_out_images_is_refused():
    schedule = replace(QUICK.dense, first=TRAINING_INDICES.stop - 1)
    with pytest.raises(ValueError, match="past the training images"):
        next(trainer._batches(schedule, 0))


def test_batches_are_consecutive_images_of_the_members_own_world():
    schedule = replace(QUICK.dense, steps=2, batch=5, first=40)
    batches = list(trainer._batches(schedule, 0))
    assert np.concatenate([scenes.index for scenes, _, _ in batches]).tolist() == list(range(40, 50))
    other = next(trainer._batches(schedule, 1))[0]
    assert not np.array_equal(other.shape, batches[0][0].shape)
