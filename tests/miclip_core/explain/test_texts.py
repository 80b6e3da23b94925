"""Cleaned texts as one would clean them by hand, and what counts as an answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miclip_core.explain.texts import REFUSALS, clean, status

ASKED = "The highlighted element in the image is a"
PIECES = [ASKED, ASKED.lower(), "n ", " ", "*", "Summary:", "Here's a description of the highlighted element:", '"']
PIECES += ["dog", "A red circle.", "\n", "ß", "éa", ":", ",", "-", "is an", "Here’s the"]
PIECES += ["Sure! ", "okay, ", "OK", "well ", "here's a summary: "]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("The highlighted element in the image is a red circle.", "Red circle."),
        ("the highlighted ELEMENT in the image is an old Ford on a road.", "Old Ford on a road."),
        ("The highlighted element in the image is the wing of a bird", "The wing of a bird"),
        ("The highlighted element in the image is abstract", "Abstract"),
        ("**Summary:** The highlighted element in the image is a *dog*", "Dog"),
        ("Here's a description of the highlighted element in the image: a DNA helix", "A DNA helix"),
        ("Here is a short, clear description of the highlighted element:\n\n  stripes", "Stripes"),
        ("Summary: Summary: two\n lines", "Two lines"),
        ("a red circle on a grey background", "A red circle on a grey background"),
        (
            "Stripes. The highlighted element in the image is a zebra",
            "Stripes. The highlighted element in the image is a zebra",
        ),
        ('"The highlighted element in the image is a sign."', "Sign."),
        ('The highlighted element in the image is a sign that says "STOP"', 'Sign that says "STOP"'),
        ("The highlighted element in the image is a", ""),
        ("The highlighted element in the image is a-frame house", "A-frame house"),
        ("The highlighted element in the image is A+ grade", "A+ grade"),
        ("Okay, here's a description of the highlighted element: a dog", "A dog"),
        ("OK here's a short summary of it, in one sentence: a dog", "A dog"),
        ("Here's looking at you: a poster", "Here's looking at you: a poster"),
        ("Sure! The highlighted element in the image is a dog", "Dog"),
        ("Of course. A dog.", "A dog."),
        ("Sure! Okay, summary: dogs", "Dogs"),
        ("Sure footing", "Sure footing"),
        ("OK!", "OK!"),
        ("Well of stone", "Well of stone"),
        ("  ***  ", ""),
        ("", ""),
        ("é", "É"),
    ],
)
def test_what_the_prompt_made_it_say_is_gone_and_all_else_is_left(raw: str, expected: str) -> None:
    assert clean(raw) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8).map("".join))
def test_cleaning_a_cleaned_text_changes_nothing(raw: str) -> None:
    once = clean(raw)
    assert clean(once) == once
    assert "*" not in once and once == once.strip()


@pytest.mark.parametrize("raw", ["", " \n", "The highlighted element in the image is a", "...", "A", "**", ": an"])
def test_a_text_without_a_word_is_empty(raw: str) -> None:
    assert status(raw, clean(raw)) == "empty"


@pytest.mark.parametrize(
    "raw",
    [
        "I'm sorry, but I cannot see an image.",
        "I’m unable to view images.",
        "Unfortunately, I can't help with that.",
        "The highlighted element in the image is a I am sorry",
        "As an AI, I see nothing",
        "**There is no highlighted element in this image.**",
        "Okay, well: please provide an image",
        "Sure! Please provide an image",
        "Sorry, no",
        "Sorry but there is nothing",
        "Sorry I can not tell",
        "sorry",
        "The image does not show any highlighted element",
        "There is no visible element",
        *REFUSALS,
    ],
)
def test_a_text_that_begins_like_a_refusal_is_one(raw: str) -> None:
    assert status(raw, clean(raw)) == "refused"


@pytest.mark.parametrize(
    "raw",
    [
        "The highlighted element in the image is a sign that says I'm sorry",
        "I-beams of steel",
        "The letter T",
        "7",
        "As an aircraft seen from below",
        "No imagery but stripes",
        "Well of stone",
        "Sorry state of a car",
        "The image does not show the sky but a lawn",
        "red red red red",
    ],
)
def test_all_other_texts_are_answers(raw: str) -> None:
    assert status(raw, clean(raw)) == "ok"
