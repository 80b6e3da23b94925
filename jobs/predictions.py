"""The classes that a model predicts, as the stages that a cell reads name them; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.protocol import Cell
from schemas.errors import BadSpec
from schemas.models import ModelFacts
from schemas.plans import StageSpec


def find_predictions(cell: Cell) -> StageSpec:
    """The one stage of predictions among what a cell reads.

    Raises:
        BadSpec: there is none, or several.
    """
    found = predictions_read(cell)
    if len(found) != 1:
        raise BadSpec(
            f"stages.{cell.name}.reads: found {len(found)} stages of predictions of {cell.model}; expected one; add "
            "predictions to the outputs of the extract stage"
        )
    return found[0]


def predictions_read(cell: Cell) -> list[StageSpec]:
    """All stages of predictions among what a cell reads, each once: several extract stages may share one."""
    plans = [plan for plans in cell.reads.values() for plan in plans if plan.stage.output == "predictions"]
    return list({plan.digest: plan.stage for plan in plans}.values())


def class_names(facts: ModelFacts, predictions: StageSpec) -> list[str]:
    """The names of the classes that are predicted: those of the spec, or of the model's head."""
    classes = predictions.params["classes"]
    names: Sequence[object] = (facts.classes or ()) if classes == "head" else classes  # type: ignore[assignment]
    return [str(name).strip() for name in names]
