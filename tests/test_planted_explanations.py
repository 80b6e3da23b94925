"""Sentences about features name what was planted, far more often than those of random directions and of other features."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planted_explanations import BLOCK, Measure, Part, is_fluent
from tests.planted_explanations_tables import Row, Run

MIDDLE, TAPPED = Part("middle", "topk", 0), Part("tapped", "topk", 0)
STEERED: dict[str, dict[str, Any]] = {
    "steering": {"methods": ["steering"], "alpha": [0, 2, 3]},
    "controls": {"methods": ["steering"], "alpha": [2], "direction": ["random", "permuted"]},
}
STAGES: dict[Part, dict[str, dict[str, Any]]] = {
    MIDDLE: STEERED,
    TAPPED: {
        **STEERED,
        "block": {"methods": ["steering"], "alpha": [6], "steered": BLOCK},
        "topk": {"methods": ["topk"]},
        "informed": {"methods": ["informed"], "alpha": [1]},
    },
}


def test_a_caption_is_fluent_and_a_chain_of_words_is_not() -> None:
    assert is_fluent("A large red striped circle in the top left on a grey background")
    assert is_fluent("A red object") and is_fluent("A grey background")
    assert not is_fluent("Red red red red") and not is_fluent("A red circle circle on a circle")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> dict[Part, list[Row]]:
    """Two layers of the flagship, one SAE each, texts from 600 images and features judged on as many others."""
    folder = tmp_path_factory.mktemp("words")
    measure = Measure(folder, {"shown": "world:seed=0,n=600", "held": "world:seed=1,n=600"})
    for part, asked in STAGES.items():
        features = measure.selective(part)
        stages = {name: {**stage, "features": features} for name, stage in asked.items()}
        measure.explain(part, "named", stages, metrics=["naming"])
    return {part: Run(folder, part, "named").named for part in STAGES}


def rows(named: list[Row], kinds: tuple[str, ...] = (), **where: str) -> list[Row]:
    """Of one variant; kinds: of what their features stand for."""
    chosen = [one for one in named if all(one[name] == value for name, value in where.items())]
    return [one for one in chosen if not kinds or one["kind"] in kinds]


def share(rows: list[Row], of: str = "named") -> float:
    """Of the texts."""
    assert len(rows) >= 6
    return sum(one[of] for one in rows) / len(rows)


OBJECTS = ("shape", "colour", "texture")
EVERYWHERE = {"method": "steering", "positions": "all"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_steering_names_what_features_of_objects_stand_for(named: dict[Part, list[Row]]) -> None:
    """61 of 65 (tapped, alpha 2) and 29 of 30 (middle, alpha 3) over three SAEs; with backgrounds, of which several features share one, .72 and .68.
    Few of these texts are whole phrases: .42 and .20 at alpha 2."""
    for part, alpha in ((TAPPED, "2"), (MIDDLE, "3")):
        steered = {**EVERYWHERE, "alpha_asked": alpha, "direction": "sae"}
        assert share(rows(named[part], OBJECTS, **steered)) >= 0.85
        assert share(rows(named[part], **steered)) >= 0.5
        assert share(rows(named[part], OBJECTS, **steered), "fluent") >= 0.1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_directions_other_features_and_none_name_it_not(named: dict[Part, list[Row]]) -> None:
    """.04 to .08 at alpha 2: features of grey are named by the blank image alone."""
    for found in named.values():
        assert share(rows(found, **EVERYWHERE, alpha_asked="2", direction="random")) <= 0.2
        assert share(rows(found, **EVERYWHERE, alpha_asked="2", direction="permuted")) <= 0.2
        assert share(rows(found, **EVERYWHERE, alpha_asked="0", direction="sae")) <= 0.2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_steering_nine_patches_names_shapes_colours_and_textures_in_whole_phrases(named: dict[Part, list[Row]]) -> None:
    """28 of 34, 21 of 21 and 10 of 10."""
    block = rows(named[TAPPED], method="steering", positions=BLOCK, alpha_asked="6", direction="sae")
    assert share(block, "fluent") >= 0.95 and share(rows(block, OBJECTS)) >= 0.85
    for kind in OBJECTS:
        assert sum(one["named"] for one in rows(block, (kind,))) >= 0.75 * len(rows(block, (kind,))) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shown_images_name_it_with_and_without_steering(named: dict[Part, list[Row]]) -> None:
    """.86 and .92, of masks."""
    assert share(rows(named[TAPPED], method="topk")) >= 0.75
    assert share(rows(named[TAPPED], method="informed", alpha_asked="1")) >= 0.8
