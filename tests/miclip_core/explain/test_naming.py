"""Names are found by whole words."""

from __future__ import annotations

import pytest

from miclip_core.explain.naming import names_words


@pytest.mark.parametrize(
    ("text", "value", "named"),
    [
        ("A dog on the grass", "dog", True),
        ("Several DOGS.", "dog", True),
        ("Two foxes", "fox", True),
        ("A hotdog stand", "dog", False),
        ("The dogma of dogged people", "dog", False),
        ("A red fire-truck", "fire_truck", True),
        ("Fire trucks in a row", "fire truck", True),
        ("A truck on fire", "fire truck", False),
        ("Fire", "fire truck", False),
        ("", "dog", False),
        ("A dog", "_", False),
    ],
)
def test_a_name_is_its_words_side_by_side(text: str, value: str, named: bool) -> None:
    assert names_words(text, value) is named
