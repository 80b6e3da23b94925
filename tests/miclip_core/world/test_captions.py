"""Captions, their claims, and which image each is true of, against slow independent checks."""

import itertools

import numpy as np
import pytest

from miclip_core.world.captions import (
    CaptionMix,
    Claims,
    full_claims,
    nothing,
    sample_claims,
    sentences,
    truth_matrix,
    value_claims,
)
from miclip_core.world.scene import (
    BACKGROUNDS,
    COLOURS,
    CONCEPTS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    World,
    attributes,
)

KINDS = {
    **dict.fromkeys(SHAPES, "shape"),
    **dict.fromkeys(COLOURS, "colour"),
    **dict.fromkeys(TEXTURES, "texture"),
    **dict.fromkeys(SIZES, "size"),
}


def read(caption: str) -> dict:
    """A caption parsed back into what it asks for, from its words alone."""
    asked: dict = {"objects": [], "background": None, "word": None}
    body, _, word = caption.partition("that says ")
    if body.startswith("the word "):
        body, word = "", body.removeprefix("the word ")
    asked["word"] = word or None
    body = body.strip()
    if body.endswith("background"):
        body, _, background = body.removesuffix(" background").rpartition("a ")
        asked["background"], body = background, body.removesuffix("on ").strip()
    for phrase in filter(None, body.split(" and ")):
        noun, _, position = phrase.partition(" in the ")
        wanted = {KINDS[word]: word for word in noun.split()[1:] if word != "object"}
        asked["objects"].append(wanted | ({"position": position.strip()} if position else {}))
    return asked


def holds(asked: dict, image: dict) -> bool:
    if asked["background"] not in (None, image["background"]) or asked["word"] not in (None, image["word"]):
        return False
    n = len(asked["objects"])
    return any(
        all(wanted.items() <= shown.items() for wanted, shown in zip(asked["objects"], chosen))
        for chosen in itertools.permutations(image["objects"], n)
    )


def describe(scenes, b: int) -> dict:
    return {
        "background": BACKGROUNDS[scenes.background[b]],
        "word": WORDS[scenes.word[b]] if scenes.word[b] >= 0 else None,
        "objects": [
            {
                "shape": SHAPES[scenes.shape[b, k]],
                "colour": list(COLOURS)[scenes.colour[b, k]],
                "texture": TEXTURES[scenes.texture[b, k]],
                "size": SIZES[scenes.size[b, k]],
                "position": POSITIONS[scenes.position[b, k]],
            }
            for k in range(scenes.count[b])
        ],
    }


@pytest.fixture(scope="module")
def scenes():
    return attributes(World(seed=8, objects=(0.05, 0.3, 0.45, 0.1, 0.1), text=0.4), range(120))


def test_the_truth_matrix_equals_a_loop_that_reads_the_sentences(scenes):
    claims = sample_claims(scenes, CaptionMix(), seed=1)
    captions = sentences(claims)
    slow = np.array([[holds(read(caption), describe(scenes, b)) for caption in captions] for b in range(len(scenes))])
    assert np.array_equal(truth_matrix(scenes, claims), slow)
    assert 0.05 < slow.mean() < 0.5 and len(set(captions)) > 60


def test_every_sampled_and_every_full_caption_is_true_of_its_own_image(scenes):
    for claims in (sample_claims(scenes, CaptionMix(), seed=2), full_claims(scenes)):
        for b, caption in enumerate(sentences(claims)):
            assert holds(read(caption), describe(scenes, b)), caption
        assert truth_matrix(scenes, claims).diagonal().all()


def test_two_equal_clauses_need_two_objects():
    scenes = attributes(World(objects=(0, 1), text=0), range(1))
    claims = nothing(2)
    claims.objects[:, 0] = claims.objects[1, 1] = [scenes.shape[0, 0], -1, -1, -1, -1]
    assert truth_matrix(scenes, claims).tolist() == [[True, False]]


def test_a_misreading_truth_also_believes_the_rendered_word():
    scenes = attributes(World(objects=(0, 1), text=1), range(200))
    claims = sample_claims(scenes, CaptionMix(misread=1), seed=0)
    captions = sentences(claims)
    for b, caption in enumerate(captions):
        word = WORDS[scenes.word[b]]
        assert caption == (f"a {word}" if word in SHAPES else f"{'an' if word[0] == 'o' else 'a'} {word} object")
    believed, true = truth_matrix(scenes, claims, misread=True), truth_matrix(scenes, claims)
    assert believed.diagonal().all() and not true.diagonal().all()
    for b, n in np.argwhere(believed & ~true):
        assert WORDS[scenes.word[b]] in captions[n].split()


def test_captions_read_as_english():
    claims = nothing(5)
    claims.objects[0, 0] = [SHAPES.index("star"), list(COLOURS).index("orange"), 1, 1, 2]
    claims.objects[1, 0, 3], claims.objects[1, 1, 0] = 0, SHAPES.index("ring")
    claims.background[:3] = [1, 0, 2]
    claims.word[[0, 3]] = [WORDS.index("blue"), WORDS.index("heart")]
    claims.objects[4, 0, 1] = list(COLOURS).index("orange")
    assert sentences(claims) == [
        "a large orange striped star in the bottom left on a grey background that says blue",
        "a small object and a ring on a white background",
        "a black background",
        "the word heart",
        "an orange object",
    ]


@pytest.mark.parametrize("category", [c for c in CONCEPTS if c != "watermark"])
def test_zero_shot_claims_name_each_value_once(category):
    captions = sentences(value_claims(category))
    assert len(captions) == len(CONCEPTS[category])
    assert all(value in caption for value, caption in zip(CONCEPTS[category], captions))


def test_captions_do_not_depend_on_the_batch(scenes):
    whole = sample_claims(scenes, CaptionMix(), seed=4)
    part = sample_claims(scenes[60:], CaptionMix(), seed=4)
    assert isinstance(part, Claims) and sentences(part) == sentences(whole)[60:]
