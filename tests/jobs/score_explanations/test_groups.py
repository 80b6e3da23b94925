"""Which of several alphas speaks for a method."""

from __future__ import annotations

import numpy as np

from jobs.explained import Variant
from jobs.score_explanations.gathered import Gathered, Key, Scored
from jobs.score_explanations.groups import find_groups

STEERING = Variant("demo:vlm", "steering", "none", "sae", "all", "1", "p90")


def found(*overlaps: list[float | None]) -> Gathered:
    """The overlap of every feature's text, for one alpha after the other; None where it has no text."""
    texts = {}
    for place, of_features in enumerate(overlaps):
        for feature, iou in enumerate(of_features):
            said = {"status": "empty" if iou is None else "ok"}
            texts[Key(place, feature, 0)] = Scored(said, iou=np.nan if iou is None else iou)
    variants = tuple(STEERING._replace(alpha_asked=str(place)) for place in range(len(overlaps)))
    return Gathered(variants, tuple(range(len(overlaps[0]))), texts, {})


def test_the_best_overlap_speaks_for_a_method() -> None:
    (group,) = find_groups(found([0.3] * 4, [0.5] * 4, [0.4] * 4), by_iou=True)
    assert group.places == {"steering": 1}


def test_an_alpha_that_fails_on_most_features_is_no_candidate() -> None:
    (group,) = find_groups(found([0.3] * 10, [0.5] * 2 + [None] * 8), by_iou=True)
    assert group.places == {"steering": 0}
    (half,) = find_groups(found([0.3] * 10, [0.5] * 5 + [None] * 5), by_iou=True)
    assert half.places == {"steering": 1}


def test_the_first_speaks_where_no_text_is_scored_and_where_overlaps_are_equal() -> None:
    for ious in ([None] * 3, [0.25] * 3):
        (group,) = find_groups(found(ious, ious), by_iou=True)  # type: ignore[arg-type]
        assert group.places == {"steering": 0}
