"""Labels read from answers as models write them, and the share of animals counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from miclip_core.explain.labels import find_contextual_bias, parse_abstraction, parse_context
from miclip_core.explain.summary import summarise_share


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


def test_bias_is_the_share_of_animals_where_steering_finds_more_and_sees_background() -> None:
    steering = np.array([0.9, 0.8, 0.7, 0.6, 0.5, np.nan, 0.9])
    topk = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.1, 0.0])
    seen = ["background", "background", "background", "background", "background", "background", "animal"]
    shown = ["animal", "other", None, "animal", "animal", "animal", "animal"]
    found = find_contextual_bias({"steering": steering, "topk": topk}, {"steering": seen, "topk": shown}, most=4)
    assert found.features.tolist() == [0, 1, 2, 3]
    assert found.animals["steering"].mean == 0 and found.animals["steering"].n == 4
    assert found.animals["topk"] == summarise_share([1, 0, 1])
    everyone = find_contextual_bias({"steering": steering, "topk": topk}, {"steering": seen, "topk": shown})
    assert everyone.features.tolist() == [0, 1, 2, 3, 4]


def test_without_a_background_there_is_no_share() -> None:
    found = find_contextual_bias({"steering": np.ones(2), "topk": np.zeros(2)}, {"steering": ["other", None]})
    assert not len(found.features) and found.animals["steering"].mean is None
