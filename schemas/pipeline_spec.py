"""Stages joined by what they read, and repeated over a matrix of models and settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from schemas.base import Frozen, canonical_json
from schemas.cells import ClipRef, Images, Name, OfAClip, OverModels
from schemas.errors import MiclipError
from schemas.matrix import MODEL, At, Matrix, NotTaken, Override, Where, points, with_fields
from schemas.pipeline_checks import check_pipeline
from schemas.plans import Resources
from schemas.refs import ModelRef
from schemas.specs import AnyJob, JobSpec
from schemas.words import nearest


class Point(NamedTuple):
    """One cell of a stage: its model if it has one, its place on the other axes, and the settings that hold there."""

    model: str | None
    at: At
    setting: JobSpec


class PipelineSpec(Frozen):
    """Stages joined by `reads`, repeated over a matrix."""

    kind: Literal["pipeline"] = "pipeline"
    name: Name
    store: str | None = None
    """A local folder or s3://bucket/prefix; the command line's --store wins."""
    images: Images | None = None
    clip: ClipRef | None = None
    """The CLIP in whose space concepts are named, for stages that need one."""
    matrix: Matrix = Field(default_factory=dict)
    """`model`: those that stages over models are repeated for; any other axis is the name of a field, and holds its values
    for the stages that are `over` it."""
    exclude: tuple[Where, ...] = ()
    """Cells that are left out."""
    overrides: tuple[Override, ...] = ()
    """Cells with settings of their own."""
    stages: dict[Name, AnyJob] = Field(min_length=1)
    resources: Resources | None = None
    """Default for stages that state none."""

    @field_validator("matrix")
    @classmethod
    def _values_differ_and_models_parse(cls, value: Matrix) -> Matrix:
        for axis, values in value.items():
            if not values:
                raise ValueError(f"matrix.{axis}: an empty list leaves nothing to do")
            if len(set(values)) != len(values):
                raise ValueError(f"matrix.{axis}: the same {axis} twice: {', '.join(map(str, values))}")
        for number, model in enumerate(value.get(MODEL, ())):
            if not isinstance(model, str):
                raise ValueError(f"matrix.{MODEL}.{number}: found {json.dumps(model)}, expected text")
            try:
                ModelRef.parse(model)
            except MiclipError as error:
                raise ValueError(f"matrix.{MODEL}.{number}: {error}") from None
        return value

    @model_validator(mode="after")
    def _reads_name_stages_without_a_cycle(self) -> PipelineSpec:
        for name, stage in self.stages.items():
            for read in stage.reads:
                if read not in self.stages:
                    there = f"{', '.join(self.stages)}{nearest(read, self.stages)}"
                    raise ValueError(f"stages.{name}.reads: no stage {read!r}; there are {there}")
        self.waves()
        check_pipeline(self)
        return self

    def clip_of(self, name: str, setting: JobSpec | None = None) -> str | None:
        """The CLIP of a stage (or of cells with a setting of their own) that needs one: its own, or that of the pipeline."""
        stage = setting or self.stages[name]
        if not stage.needs_clip:
            return None
        return (stage.clip if isinstance(stage, OfAClip) else None) or self.clip

    def points_of(self, name: str) -> Iterator[Point]:
        """The cells of a stage, but for pairs and zoos: for each combination of its axes, each of its models that is not
        left out there, with the settings that hold there."""
        stage = self.stages[name]
        made = {canonical_json({}): stage}
        for at in self.places(name):
            values = self.values(name, at)
            for model in self.models_of(name) or (None,):
                if any(entry.meets(name, model, at) for entry in self.exclude):
                    continue
                own = [entry.set for entry in self.overrides if entry.meets(name, model, at)]
                fields: dict[str, Any] = dict(values)
                for some in own:
                    fields |= some
                key = canonical_json(fields)
                if key not in made:
                    made[key] = self._set(name, fields)
                yield Point(model, at, made[key])

    def _set(self, name: str, fields: dict[str, Any]) -> JobSpec:
        try:
            return with_fields(self.stages[name], fields)
        except NotTaken as error:
            raise error.at(f"stages.{name}", f"with {canonical_json(fields)}") from None

    def places(self, name: str) -> list[At]:
        """Every place on the axes of a stage, whether or not cells are left out there; one empty place if it has none."""
        return points(self.matrix, self.stages[name].over)

    def values(self, name: str, at: At) -> At:
        """The values on axes that are settings of the stage; the others choose among what it reads."""
        stage = self.stages[name]
        return {axis: value for axis, value in at.items() if axis in type(stage).model_fields}

    def kinds_read(self, name: str) -> set[str]:
        """The kinds of the stages that a stage reads."""
        return {self.stages[read].kind for read in self.stages[name].reads}

    def models_of(self, name: str) -> tuple[str, ...]:
        """The models a stage is repeated for: its own, else those of what it reads, else the matrix's, but for those that are
        left out of the whole stage; none if it has no model."""
        left_out = {
            model
            for entry in self.exclude
            if name in (entry.stage or self.stages) and not entry.at
            for model in entry.model
        }
        return tuple(model for model in self.all_models_of(name) if model not in left_out)

    def all_models_of(self, name: str) -> tuple[str, ...]:
        """The same before any is left out of this stage."""
        stage = self.stages[name]
        if not isinstance(stage, OverModels):
            return ()
        if stage.models is not None:
            return stage.models
        read = [model for other in stage.reads for model in self.models_of(other)]
        return tuple(dict.fromkeys(read)) or tuple(str(model) for model in self.matrix.get(MODEL, ()))

    @property
    def index_resources(self) -> Resources:
        """What indexing takes: as many workers and decoding threads as the widest stage, and never a GPU."""
        stated = [self.resources] if self.resources else []
        stated += [stage.resources for stage in self.stages.values() if "resources" in stage.model_fields_set]
        return Resources(
            workers=max((r.workers for r in stated), default=Resources().workers),
            decode_threads=max((r.decode_threads for r in stated), default=1),
        )

    def waves(self) -> list[list[str]]:
        """Stage names in dependency order: each wave reads only earlier ones.

        Raises:
            ValueError: the reads form a cycle.
        """
        done: set[str] = set()
        waves: list[list[str]] = []
        while len(done) < len(self.stages):
            wave = [n for n, s in self.stages.items() if n not in done and set(s.reads) <= done]
            if not wave:
                raise ValueError(f"stages {', '.join(sorted(set(self.stages) - done))} read each other in a circle")
            waves.append(wave)
            done.update(wave)
        return waves
