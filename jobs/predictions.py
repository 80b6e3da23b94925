"""The classes that a model tells apart: those that a spec gives it, and those of the predictions that a cell reads; loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from jobs.protocol import Cell
from schemas.cells import Classes, templates_json
from schemas.errors import BadSpec
from schemas.models import ModelFacts
from schemas.plans import StageSpec

HEAD = "head"
"""In place of a list of names: the classes that the model's own head tells."""
PREDICTED = "predicted"
"""In place of a column of labels: the first class that is predicted of an image."""


def find_predictions(cell: Cell) -> StageSpec:
    """The one stage of predictions among what a cell reads.

    Raises:
        BadSpec: there is none, or several.
    """
    found = predictions_read(cell)
    if len(found) != 1:
        raise BadSpec(
            f"stages.{cell.name}.reads: found {len(found)} stages of predictions of {cell.model}; expected one; add "
            "predictions to the outputs of the extract stage, or read a probe stage, which gives them to a model that tells no "
            "classes"
        )
    return found[0]


def predictions_read(cell: Cell) -> list[StageSpec]:
    """All stages of predictions among what a cell reads, each once: several extract stages may share one."""
    plans = [plan for plans in cell.reads.values() for plan in plans if plan.stage.output == "predictions"]
    return list({plan.digest: plan.stage for plan in plans}.values())


def choose_classes(facts: ModelFacts, classes: Classes | None) -> dict[str, JsonValue] | None:
    """The params `classes`, and `templates` if they are sentences, by which a model tells classes.

    Those that are given for a model with a text tower, else those of its own head (HEAD); None if it has neither.
    """
    if facts.has_text and classes is not None:
        return {"classes": list(classes.names), "templates": templates_json(classes.templates)}
    return None if facts.classes is None else {"classes": HEAD}


def class_names(facts: ModelFacts, params: Mapping[str, JsonValue]) -> list[str]:
    """The names of the classes of a stage by its param `classes`, without white space around them: its own, or of the head."""
    classes = params["classes"]
    names: Sequence[object] = (facts.classes or ()) if classes == HEAD else classes  # type: ignore[assignment]
    return [str(name).strip() for name in names]
