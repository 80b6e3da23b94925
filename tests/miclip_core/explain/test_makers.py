"""Images made from texts show what the texts say; a diffusion pipeline is asked as its own library would be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from miclip_core.explain.makers import DiffusionMaker, ImageMaker, WorldMaker, is_black, said_scene
from miclip_core.world.captions import ANY, CaptionMix, full_claims, nothing, sample_claims, sentences, truth_matrix
from miclip_core.world.reading import read
from miclip_core.world.render import render_scenes
from miclip_core.world.scene import (
    CONCEPTS,
    IMAGE_SIZE,
    OBJECT_FIELDS,
    RADII,
    Scenes,
    World,
    attributes,
)
from schemas.errors import BadSpec, UnknownModel

SEEDS = st.integers(0, 2**63 - 1)
slots = st.tuples(*(st.sampled_from(range(-1, len(CONCEPTS[field]))) for field in OBJECT_FIELDS))


def claimed(objects: list[tuple[int, ...]], background: int, word: int) -> str:
    claims = nothing(1)
    claims.objects[0, : len(objects)] = np.reshape(objects, (-1, len(OBJECT_FIELDS)))
    claims.background[0], claims.word[0] = background, word
    return sentences(claims)[0]


def needed(objects: list[tuple[int, ...]]) -> int:
    """How many objects a text asks for; one that is only said to be where another is may be that one."""
    said = [one for one in objects if max(one) >= 0]
    return max(
        (
            n
            for n, one in enumerate(said, 1)
            if max(one[:4]) >= 0 or one[4] not in [other[4] for other in said[: n - 1]]
        ),
        default=0,
    )


def in_the_world(scene: Scenes) -> bool:
    """Whether the scene is one that the world could have drawn."""
    radius = np.asarray(RADII)[scene.size, scene.radius]
    quadrant = np.where(scene.position >= 0, scene.position, 0)
    half, present = IMAGE_SIZE // 2, scene.position >= 0
    inside = [
        (centre - radius >= place * half) & (centre + radius <= (place + 1) * half) | ~present
        for centre, place in ((scene.x, quadrant % 2), (scene.y, quadrant // 2))
    ]
    count = int(scene.count[0])
    there = [getattr(scene, field)[0] for field in OBJECT_FIELDS]
    distinct = len(set(scene.position[0, :count])) == count
    return (
        distinct
        and all(part.all() for part in inside)
        and all((v[:count] >= 0).all() and (v[count:] < 0).all() for v in there)
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(slots, max_size=4), st.integers(-1, 5), st.integers(-1, 15), SEEDS)
@example([(-1, -1, -1, -1, 0), (-1, -1, -1, -1, 0)], 0, 0, 0)
@example([(-1, -1, -1, -1, 0), (-1, -1, -1, -1, 0), (3, -1, -1, -1, 0)], 0, 0, 0)
def test_what_a_text_says_is_true_of_its_image(
    objects: list[tuple[int, ...]], background: int, word: int, seed: int
) -> None:
    places = [one[4] for one in objects if one[4] != ANY]
    text, scene = claimed(objects, background, word), said_scene(claimed(objects, background, word), seed)
    claims = read(text).claims()
    if len(set(places)) < len(places):  # two objects cannot be at one place; all else is still true
        claims.objects[..., 4] = ANY
    assert truth_matrix(scene, claims).item(), text
    assert scene.count[0] in ({1, 2} if needed(objects) < 2 else {needed(objects)})
    assert in_the_world(scene), text


@settings(max_examples=60, deadline=None)
@given(slots.filter(lambda one: max(one) >= 0), st.integers(0, 5), SEEDS)
def test_the_caption_of_the_drawn_scene_says_what_the_text_said(
    one: tuple[int, ...], background: int, seed: int
) -> None:
    reading = read(claimed([(*one[:4], ANY)], background, ANY))
    caption = read(sentences(full_claims(said_scene(claimed([(*one[:4], ANY)], background, ANY), seed)))[0])
    assert caption.background == reading.background
    for phrase in reading.objects:
        assert any(phrase.items() <= other.items() for other in caption.objects)


def test_an_image_is_that_of_its_scene_and_depends_on_its_own_text_and_seed_alone() -> None:
    maker: ImageMaker = WorldMaker()
    texts, numbers = ["a red circle", "an elephant", "the word star", "a red circle"], [5, 6, 7, 8]
    images = maker.make(texts, numbers)
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 64, 64)
    for image, text, number in zip(images, texts, numbers, strict=True):
        assert np.array_equal(image.permute(1, 2, 0), render_scenes(said_scene(text, number))[0][0])
        assert torch.equal(maker.make([text], [number])[0], image)
    assert not torch.equal(images[0], images[3])
    assert maker.make([], []).shape == (0, 3, 64, 64)


def test_what_is_left_open_has_the_chances_of_one_and_two_objects() -> None:
    scenes = [said_scene("a red object", seed) for seed in range(500)]
    share = {name: np.mean(found) for name, found in {
        "two": [scene.count[0] == 2 for scene in scenes],
        "text": [scene.word[0] >= 0 for scene in scenes],
        "star": [scene.shape[0, 0] == 4 for scene in scenes],
        "grey": [scene.background[0] == 1 for scene in scenes],
        "place": [scene.position[0, 0] == 3 for scene in scenes],
        "red too": [scene.colour[0, 1] == 0 for scene in scenes if scene.count[0] == 2],
    }.items()}  # fmt: skip
    expected = {"two": 0.4, "text": 0.15, "star": 1 / 8, "grey": 1 / 6, "place": 1 / 4, "red too": 1 / 8}
    for name, chance in expected.items():
        n = 200 if name == "red too" else 500
        assert abs(share[name] - chance) < 4 * np.sqrt(chance * (1 - chance) / n), (name, share[name])


def test_a_text_that_says_nothing_gives_a_scene_of_the_world_and_no_image_of_an_image_set() -> None:
    world = World(seed=9, objects=(0, 0.6, 0.4))
    expected = attributes(world, [2_000_000])
    for name, value in vars(said_scene("an elephant", 9)).items():
        assert np.array_equal(value, getattr(expected, name)), name


def test_a_scene_keeps_what_the_text_does_not_say() -> None:
    """The same seed with one more word changes that word's value alone."""
    for seed in range(20):
        plain, red = said_scene("", seed), said_scene("a red object", seed)
        differ = {name for name, value in vars(plain).items() if not np.array_equal(value, getattr(red, name))}
        assert differ <= {"colour"}


def test_a_said_claim_of_many_rows_is_each_row_alone() -> None:
    scenes = attributes(World(), range(40))
    claims = sample_claims(scenes, CaptionMix(), seed=2)
    said = {field: claims.objects[:, :, k] for k, field in enumerate(OBJECT_FIELDS)}
    said |= {"background": claims.background, "word": claims.word}
    together = attributes(World(seed=3), range(40), said)
    assert truth_matrix(together, claims).diagonal().all()
    for n in (0, 11, 39):
        alone = attributes(World(seed=3), [n], {name: value[n : n + 1] for name, value in said.items()})
        assert all(np.array_equal(getattr(alone, name)[0], getattr(together, name)[n]) for name in vars(alone))


def test_each_text_needs_a_seed() -> None:
    with pytest.raises(BadSpec, match="2 texts and 1 seeds"):
        WorldMaker().make(["a", "b"], [1])


def test_black_images_are_known() -> None:
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    images[1, 2, 3, 3] = 1
    assert is_black(images).tolist() == [True, False, True]


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="model_index"):
        DiffusionMaker(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": ["pipeline", "Mine"]}))
    with pytest.raises(BadSpec, match="steps=0"):
        DiffusionMaker(tmp_path, steps=0)
