"""A text is read back into what it says: of the world's own captions everything, of other texts what can be known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miclip_core.world.captions import ANY, CaptionMix, full_claims, nothing, sample_claims, sentences, value_claims
from miclip_core.world.reading import Reading, names_value, read
from miclip_core.world.scene import CONCEPTS, PLANTED, World, attributes

VOCABULARY = sorted(
    {word for values in CONCEPTS.values() for value in values for word in value.split()}
    | {"a", "an", "and", "on", "in", "the", "that", "says", "word", "object", "background", ",", "with", "elephant"}
)


def phrase(**values: str) -> dict[str, str]:
    return values


def test_a_caption_is_read_back_into_its_claims():
    scenes = attributes(World(text=0.5), range(600))
    for claims in (full_claims(scenes), sample_claims(scenes, CaptionMix(), seed=1)):
        for n, caption in enumerate(sentences(claims)):
            back = read(caption).claims()
            said = [tuple(slot) for slot in claims.objects[n] if (slot != ANY).any()]
            assert [tuple(slot) for slot in back.objects[0] if (slot != ANY).any()] == said, caption
            assert (back.background[0], back.word[0]) == (claims.background[n], claims.word[n]), caption


@pytest.mark.parametrize("category", [*PLANTED, "position", "word"])
def test_a_caption_of_one_value_names_it_alone(category: str):
    for value, caption in zip(CONCEPTS[category], sentences(value_claims(category)), strict=True):
        assert read(caption).named == {(category, value)}, caption
        assert names_value(caption, category, value)
        assert not any(names_value(caption, category, other) for other in CONCEPTS[category] if other != value)


RED = phrase(colour="red")
CIRCLE = phrase(shape="circle")


@pytest.mark.parametrize(
    ("text", "objects", "background", "word"),
    [
        ("", (), None, None),
        ("an elephant in its natural habitat", (), None, None),
        ("red red red red", (RED,), None, None),
        ("Large RED Circles, seen in the top-left corner.", (phrase(size="large", colour="red", shape="circle"), phrase(position="top left")), None, None),
        ("a circle in the top left", (phrase(shape="circle", position="top left"),), None, None),
        ("a top left circle", (phrase(shape="circle", position="top left"),), None, None),
        ("the circle on the left", (CIRCLE,), None, None),
        ("a circle that is red", (phrase(shape="circle", colour="red"),), None, None),
        ("red circle blue square", (phrase(colour="red", shape="circle"), phrase(colour="blue", shape="square")), None, None),
        ("red circle and striped square", (phrase(colour="red", shape="circle"), phrase(texture="striped", shape="square")), None, None),
        ("a red and striped circle", (phrase(colour="red", texture="striped", shape="circle"),), None, None),
        ("a red and blue object", (RED, phrase(colour="blue")), None, None),
        ("a red object and a red object", (RED, RED), None, None),
        ("crosses", (phrase(shape="cross"),), None, None),
        ("a gray background", (), "grey", None),
        ("grey grey grey", (), "grey", None),
        ("a black star", (phrase(shape="star"),), None, None),
        ("a star on black", (phrase(shape="star"),), None, None),
        ("a star on a black background", (phrase(shape="star"),), "black", None),
        ("a star grey background", (phrase(shape="star"),), "grey", None),
        ("a red background", (), None, None),
        ("a white background and a grey background", (), "white", None),
        ("a background of red circles", (phrase(colour="red", shape="circle"),), None, None),
        ("the word 'red'", (), None, "red"),
        ("a heart that says heart heart", (phrase(shape="heart"),), None, "heart"),
        ("it says nothing red", (RED,), None, None),
    ],
)  # fmt: skip
def test_other_texts_say_what_their_words_do(text: str, objects: tuple, background: str | None, word: str | None):
    reading = read(text)
    assert (reading.objects, reading.background, reading.word) == (objects, background, word)


def test_all_words_are_named_also_where_they_are_no_thing_of_the_world():
    assert read("a red background that says star").named == {("colour", "red"), ("word", "star")}
    assert read("a black ring").named == {("background", "black"), ("shape", "ring")}
    assert not names_value("the word red", "colour", "red") and names_value("the word red", "word", "red")
    assert not names_value("reddish", "colour", "red")


def test_more_objects_than_an_image_holds_are_read_and_the_first_four_claimed():
    reading = read("a circle and a square and a ring and a star and a heart")
    assert len(reading.objects) == 5
    assert reading.claims().objects[0, :, 0].tolist() == [0, 1, 6, 4]


@settings(deadline=None)
@given(st.lists(st.sampled_from(VOCABULARY), max_size=25).map(" ".join))
def test_any_text_is_read_and_its_claims_say_again_what_was_read(text: str):
    reading = read(text)
    assert all(reading.objects) and all(set(one) <= set(CONCEPTS) for one in reading.objects)
    said = {item for one in reading.objects for item in one.items()}
    said |= {("background", reading.background)} - {("background", None)}
    said |= {("word", reading.word)} - {("word", None)}
    assert said <= reading.named
    assert all(value in CONCEPTS[category] for category, value in reading.named)
    claims = reading.claims()
    again = read(sentences(claims)[0])
    assert (again.background, again.word) == (reading.background, reading.word)
    assert again.objects == reading.objects[:4]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_is_refused(text: str):
    assert isinstance(read(text), Reading)


def test_a_text_that_says_nothing_claims_nothing():
    claims, empty = read("?").claims(), nothing(1)
    assert np.array_equal(claims.objects, empty.objects)
    assert (claims.background, claims.word) == (empty.background, empty.word)
