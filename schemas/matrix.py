"""Where a pipeline's matrix is not full: axes of settings beside models, cells that are left out, cells with settings of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, JsonValue, ValidationError, field_validator, model_validator

from schemas.base import Frozen
from schemas.cells import LISTED, Cell, Name, as_listed, as_value_error
from schemas.refs import ModelRef

Scalar = bool | int | float | str
AxisValue = Scalar | Annotated[tuple[Scalar, ...], BeforeValidator(as_listed)]
"""One value of a field, or a list where the field takes one."""
At = dict[str, AxisValue]
"""The place of a cell on each axis that its stage is repeated over, but for that of models."""
Matrix = dict[Name, Annotated[tuple[AxisValue, ...], BeforeValidator(as_listed)]]
MODEL = "model"
"""The axis of all stages over models; every other one is named by the stages that are repeated over it."""
FIXED = frozenset({"kind", "reads", "over", MODEL})
"""Fields that say what a stage is, which no axis and no override changes."""

Stage = TypeVar("Stage", bound=Cell)


class Where(Frozen):
    """Cells of a pipeline: all of them but for what is said."""

    stage: Annotated[tuple[Name, ...], LISTED] = ()
    """One stage or several."""
    model: Annotated[tuple[str, ...], LISTED] = ()
    at: dict[Name, Annotated[tuple[AxisValue, ...], LISTED]] = Field(default_factory=dict)
    """Axis -> one of its values, or several."""

    @model_validator(mode="after")
    def _says_which(self) -> Where:
        if not (self.stage or self.model or self.at):
            raise ValueError("this is of every cell; say which by stage, model or at")
        return self

    @field_validator("model")
    @classmethod
    def _models_parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(as_value_error(ModelRef.parse, text) for text in value)

    def meets(self, stage: str, model: str | None, at: Mapping[str, AxisValue]) -> bool:
        """Whether a cell is one of them; one without a model, or without a place on an axis that is named, is not."""
        return (
            (not self.stage or stage in self.stage)
            and (not self.model or model in self.model)
            and all(axis in at and at[axis] in values for axis, values in self.at.items())
        )


class Override(Where):
    """Settings of some cells that differ from those of their stages; of several that meet a cell, later ones win."""

    set: Annotated[dict[Name, JsonValue], Field(min_length=1)]
    """Field -> value, as the stage would have it."""

    @field_validator("set")
    @classmethod
    def _settings_alone(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if fixed := sorted(FIXED & value.keys()):
            raise ValueError(f"{fixed[0]} is what a stage is, and the same for all its cells; write another stage")
        return value


class NotTaken(ValueError):
    """A stage does not take values that stand elsewhere in its pipeline.

    place: dotted path of the value or values. about: what it was written for, for people, or nothing if the place says it.
    kind: the class of the stage. data: the whole stage with them. error: what is wrong with it.
    """

    def __init__(self, kind: type[Cell], data: dict[str, Any], error: ValidationError) -> None:
        self.place, self.about = "", ""
        self.kind, self.data, self.error = kind, data, error
        super().__init__()

    def at(self, place: str, about: str = "") -> NotTaken:
        """The same, and where the values stand."""
        self.place, self.about = place, about
        return self

    def __str__(self) -> str:
        first = self.error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        return ": ".join(word for word in (self.place, self.about, field, str(first["msg"])) if word)


def with_fields(stage: Stage, fields: Mapping[str, Any]) -> Stage:
    """The stage with other values of some fields, checked as if they were written there.

    Raises:
        NotTaken: the stage has no such field, or does not take the value; the message names the field.
    """
    data = {**json.loads(stage.model_dump_json(exclude_unset=True)), **fields}
    try:
        return type(stage).model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise NotTaken(type(stage), data, error) from None


def points(matrix: Mapping[str, tuple[AxisValue, ...]], over: tuple[str, ...]) -> list[At]:
    """Every combination of the values of these axes; one empty point for none."""
    return [dict(zip(over, values)) for values in product(*(matrix[axis] for axis in over))]


def place_text(at: Mapping[str, AxisValue]) -> str:
    """`latents=512/k=8`, for people; values of a list are joined by `+`."""
    return "/".join(
        f"{axis}={'+'.join(map(str, value)) if isinstance(value, tuple) else value}" for axis, value in at.items()
    )
