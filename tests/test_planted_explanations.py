"""Sentences about features name what was planted, far more often than those of random directions and of other features."""

from __future__ import annotations

from typing import Any

import pytest

from tests.planted_explanations import BLOCK, Measure, Part, is_fluent
from tests.planted_explanations_tables import Row, Run

TAPPED = Part("tapped", "topk", 0)
STAGES: dict[str, dict[str, Any]] = {
    "steering": {"methods": ["steering"], "alpha": [0, 2]},
    "controls": {"methods": ["steering"], "alpha": [2], "direction": ["random", "permuted"]},
    "block": {"methods": ["steering"], "alpha": [3], "steered": BLOCK},
    "topk": {"methods": ["topk"]},
    "informed": {"methods": ["informed"], "alpha": [1]},
}


def test_a_caption_is_fluent_and_a_chain_of_words_is_not() -> None:
    assert is_fluent("A large red striped circle in the top left on a grey background")
    assert is_fluent("A red object") and is_fluent("A grey background")
    assert not is_fluent("Red red red red") and not is_fluent("A red circle circle on a circle")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The tapped layer of the flagship, one SAE, texts from 600 images and features judged on as many others."""
    folder = tmp_path_factory.mktemp("words")
    images = {"shown": "world:seed=0,n=600", "held": "world:seed=1,n=600"}
    measure = Measure(folder, images)
    features = measure.selective(TAPPED)
    stages = {name: {**stage, "features": features} for name, stage in STAGES.items()}
    measure.explain(TAPPED, "named", stages, metrics=["naming"])
    return Run(folder, TAPPED, "named").named


def share(named: list[Row], of: str = "named", objects: bool = False, **where: str) -> float:
    """Of the texts of one variant; objects: those about features of backgrounds are left out."""
    chosen = [one for one in named if all(one[name] == value for name, value in where.items())]
    chosen = [one for one in chosen if not objects or one["kind"] != "background"]
    assert len(chosen) >= 12
    return sum(one[of] for one in chosen) / len(chosen)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_steering_names_what_features_of_objects_stand_for(named: list[Row]) -> None:
    """63 of 65 over three SAEs at alpha 2, in whole phrases; with backgrounds, of which several features share one, .68."""
    steered = {"method": "steering", "positions": "all", "alpha_asked": "2", "direction": "sae"}
    assert share(named, objects=True, **steered) >= 0.85
    assert share(named, **steered) >= 0.45
    assert share(named, "fluent", **steered) >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_directions_other_features_and_none_name_it_not(named: list[Row]) -> None:
    """.06 and .05 at alpha 2: features of grey are named by the blank image alone."""
    steered = {"method": "steering", "positions": "all"}
    assert share(named, **steered, alpha_asked="2", direction="random") <= 0.2
    assert share(named, **steered, alpha_asked="2", direction="permuted") <= 0.2
    assert share(named, **steered, alpha_asked="0", direction="sae") <= 0.2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_steering_nine_patches_names_it_in_whole_phrases(named: list[Row]) -> None:
    """64 of 65 at alpha 3."""
    block = {"method": "steering", "positions": BLOCK, "alpha_asked": "3", "direction": "sae"}
    assert share(named, objects=True, **block) >= 0.85
    assert share(named, "fluent", **block) >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shown_images_name_it_with_and_without_steering(named: list[Row]) -> None:
    """.92 and .94, of masks."""
    assert share(named, method="topk") >= 0.8
    assert share(named, method="informed", alpha_asked="1") >= 0.8
