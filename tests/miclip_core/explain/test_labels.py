"""Labels read from answers as models write them."""

from __future__ import annotations

import pytest

from miclip_core.explain.labels import parse_abstraction, parse_context


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("low-level visual feature", "low-level visual feature"),
        ("**High-Level visual feature**", "high-level visual feature"),
        ("'high level visual feature'", "high-level visual feature"),
        ("It is a low‑level feature, not a high-level one.", "low-level visual feature"),
        ("A high-level one rather than low-level", "high-level visual feature"),
        ("other", "other"),
        ("", "other"),
        ("lowlands", "other"),
    ],
)
def test_an_abstraction_is_the_first_label_that_is_named(answer: str, label: str) -> None:
    assert parse_abstraction(answer) == label


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("animal", "animal"),
        ("Animals.", "animal"),
        ("background", "background"),
        ("An animal before a BACKGROUND of grass", "animal"),
        ("background, with an animal", "animal"),
        ("other", "other"),
        ("", "other"),
    ],
)
def test_a_context_is_animal_before_background_before_other(answer: str, label: str) -> None:
    assert parse_context(answer) == label
