"""What the vision-language model is taught: full captions, collages of one value, and what rendered images have in common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from miclip_core.world.evaluate import held_out, pixels_of
from miclip_core.world.evaluate_vlm import AN_OBJECT
from miclip_core.world.planted import patch_truth
from miclip_core.world.recipes import VLM
from miclip_core.world.scene import COLOURS, CONCEPTS, SHAPES, World
from miclip_core.world.tokens import BOS, encode
from miclip_core.world.vlm import IMAGE, make_vlm
from miclip_core.world.vlm_lessons import (
    PATCH,
    SHARES,
    caption_lesson,
    captions_of,
    collage_lesson,
    common_lesson,
    draw_with_maps,
    show_values,
    value_sentence,
)


@pytest.fixture(scope="module")
def vlm():
    return make_vlm(VLM)


def test_objects_are_named_in_the_order_in_which_one_reads():
    scenes = held_out(200, replace(AN_OBJECT, objects=(0, 0, 0, 1), text=0))
    for b, caption in enumerate(captions_of(scenes)):
        order = np.argsort(scenes.position[b, :3])
        wanted = [f"a {[*COLOURS][scenes.colour[b, k]]} {SHAPES[scenes.shape[b, k]]}" for k in order]
        assert caption.replace("an orange", "a orange").startswith(" and ".join(wanted) + " on a ")


def test_nothing_is_said_of_rendered_words():
    scenes = held_out(50, World(seed=1, text=1.0))
    assert (scenes.word >= 0).all() and not any("says" in caption for caption in captions_of(scenes))


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_the_words_after_the_begin(vlm):
    scenes = held_out(3, World(seed=1, text=0.5))
    lesson, _ = caption_lesson(vlm, scenes)
    pixels, total, count = pixels_of(scenes), 0.0, 0
    for b, caption in enumerate(captions_of(scenes)):
        words = encode([caption])[0]
        words = words[: 2 + len(caption.split())].tolist()
        ids = torch.tensor([[IMAGE] * 64 + words])
        logits = vlm(input_ids=ids, pixel_values=pixels[b : b + 1]).logits[0].log_softmax(-1)
        assert words[0] == BOS
        for at, word in enumerate(words[1:]):
            total, count = total - float(logits[64 + at, word]), count + 1
    assert float(lesson.loss(vlm)) == pytest.approx(total / count, rel=1e-5)


@pytest.fixture(scope="module")
def collages(vlm):
    scenes = held_out(60, World(seed=1, objects=(0.2, 0.8), text=0.3))
    lesson, labels = caption_lesson(vlm, scenes)
    return scenes, lesson.tokens, collage_lesson(lesson.tokens, scenes, labels, 120, np.random.default_rng(0))


def _meant(answer):
    """What an answer says, as (category, value), and the background that it says beside it, or None."""
    whole, _, below = answer.partition(" on ")
    ((category, value),) = [(c, v) for c in SHARES for v in range(len(CONCEPTS[c])) if value_sentence(c, v) == whole]
    return category, value, [value_sentence("background", v) for v in range(6)].index(below) if below else None


def test_a_collage_shows_the_one_value_that_is_said_and_around_it_a_scene_without_objects(collages):
    scenes, tokens, lesson = collages
    place_of = {token.tobytes(): at for at, token in enumerate(tokens.flatten(0, 1).numpy())}
    classes = patch_truth(scenes, PATCH)
    blocks = scattered = whole = 0
    for collage, answer in zip(lesson.tokens, lesson.answers, strict=True):
        category, value, below = _meant(answer)
        places = np.array([place_of[token.tobytes()] for token in collage.numpy()])  # real tokens, all of them
        left = np.arange(64) == places % 64
        if below is not None:
            left &= (scenes.background[places // 64] == below) & (scenes.count[places // 64] == 0)
        fits = classes[category].reshape(-1)[places] == value
        assert (fits | (left if below is not None else False)).all(), answer
        shown = np.argwhere(~left.reshape(8, 8))
        height, width = np.ptp(shown, axis=0) + 1
        full = height * width == len(shown)
        whole += below is None
        blocks += below is not None and full and max(height, width) <= 5
        scattered += below is not None and not full
    assert len(lesson.answers) == 120 and whole >= 40 and blocks >= 20 and scattered >= 12


def test_changed_scenes_show_their_value_and_a_map_without_errors_is_the_truth():
    category = np.array([*SHARES] * 24)
    value = np.arange(len(category)) % np.array([len(CONCEPTS[name]) for name in category])
    scenes = show_values(held_out(len(category), AN_OBJECT), category, value)
    truth = patch_truth(scenes, PATCH)
    rng = np.random.default_rng(0)
    pixels, maps = draw_with_maps(scenes, category, value, rng, errors=0)
    assert pixels.shape == (120, 3, 64, 64) and pixels.dtype == torch.uint8
    shows = np.stack([truth[name][b] == value[b] for b, name in enumerate(category)])
    assert shows.any(1).all()
    np.testing.assert_array_equal((maps > 0).reshape(120, 64).numpy(), shows)
    wrong = (draw_with_maps(scenes, category, value, rng)[1] > 0).reshape(120, 64).numpy()
    assert 0.1 < (shows & ~wrong).sum() / shows.sum() < 0.4 and 0 < (wrong & ~shows).mean() < 0.05
    assert (wrong & shows).any(1).all()


def test_groups_say_their_common_value(vlm):
    lesson = common_lesson(vlm, held_out(12, AN_OBJECT), 3, np.random.default_rng(0))
    assert lesson.tokens.shape == (12, 64, 96) and len(lesson.answers) == 4
    assert set(lesson.answers) <= {value_sentence(c, v) for c in SHARES for v in range(len(CONCEPTS[c]))}
