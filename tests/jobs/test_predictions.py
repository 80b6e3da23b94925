"""Which classes a model tells apart: those that it is given if it has a text tower, else those of its head."""

from __future__ import annotations

import pytest

from jobs.predictions import HEAD, choose_classes, class_names
from schemas.cells import Classes
from schemas.models import ModelFacts

GIVEN = Classes(names=("cat ", "dog"), templates=("a {}",))
ZERO_SHOT = {"classes": ["cat ", "dog"], "templates": ["a {}"]}


def facts(has_text: bool, head: tuple[str, ...] | None) -> ModelFacts:
    return ModelFacts.model_construct(model="demo:made-up", has_text=has_text, classes=head)


@pytest.mark.parametrize(
    ("has_text", "head", "given", "found"),
    [
        (True, None, GIVEN, ZERO_SHOT),
        (True, None, None, None),
        (True, ("a", "b"), GIVEN, ZERO_SHOT),
        (True, ("a", "b"), None, {"classes": HEAD}),
        (False, ("a", "b"), GIVEN, {"classes": HEAD}),
        (False, None, GIVEN, None),
    ],
)
def test_given_classes_need_a_text_tower_and_else_the_head_tells_its_own(
    has_text: bool, head: tuple[str, ...] | None, given: Classes | None, found: object
) -> None:
    assert choose_classes(facts(has_text, head), given) == found


def test_names_of_classes_are_those_of_the_stage_or_of_the_head() -> None:
    assert class_names(facts(True, None), ZERO_SHOT) == ["cat", "dog"]
    assert class_names(facts(False, (" a", "b")), {"classes": HEAD}) == ["a", "b"]
