"""Stages joined by what they read, and repeated over a matrix of models and settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from schemas.base import Frozen, canonical_json
from schemas.cells import ClipRef, Images, Name, OfAClip, OverModels, OverZoo
from schemas.errors import MiclipError
from schemas.matrix import FIXED, MODEL, At, Matrix, Override, Where, points, with_fields
from schemas.plans import Resources
from schemas.refs import ModelRef
from schemas.specs import READS, AnyJob, JobSpec


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
                raise ValueError(f"matrix.{axis}: an empty list of {axis}s leaves nothing to do")
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
                    raise ValueError(f"stages.{name}.reads: no stage {read!r}; there are {', '.join(self.stages)}")
        self.waves()
        self._check_axes()
        self._check_places()
        for name, stage in self.stages.items():
            kinds = self.kinds_read(name)
            if unread := kinds - READS.get(stage.kind, kinds):
                raise ValueError(
                    f"stages.{name}.reads: {stage.kind} cannot read {', '.join(sorted(unread))}; it reads "
                    f"{', '.join(sorted(READS[stage.kind]))}"
                )
            if isinstance(stage, OverModels) and not self.models_of(name):
                if self._all_models_of(name):
                    raise ValueError(
                        f"exclude: nothing is left of stages.{name}; leave that stage out, or exclude less"
                    )
                raise ValueError(f"stages.{name}: no model; give stages.{name}.model or matrix.model")
            if not any(True for _ in self.points_of(name)):
                raise ValueError(f"exclude: nothing is left of stages.{name}; leave that stage out, or exclude less")
            for setting in {id(point.setting): point.setting for point in self.points_of(name)}.values():
                self._check_setting(name, setting, kinds)
        return self

    def _check_setting(self, name: str, setting: JobSpec, kinds: set[str]) -> None:
        """What some cells of a stage cannot do without. Raises ValueError."""
        if lacked := setting.lacks(kinds):
            raise ValueError(f"stages.{name}.reads: {lacked}")
        if setting.needs_clip and self.clip_of(name, setting) is None:
            raise ValueError(f"stages.{name}: {setting.no_clip}; give clip: open_clip:ViT-B-16/openai, for example")
        has_images = self.images is not None or getattr(setting, "images", None) is not None
        if setting.needs_images(kinds) and not has_images:
            raise ValueError(f"stages.{name}: no images; give images: {{ref: folder:/path}}")

    def _check_axes(self) -> None:
        """Every axis is used, and every stage can take what its axes hold. Raises ValueError."""
        axes = [axis for axis in self.matrix if axis != MODEL]
        for name, stage in self.stages.items():
            if len(set(stage.over)) != len(stage.over):
                raise ValueError(f"stages.{name}.over: the same axis twice: {', '.join(stage.over)}")
            for axis in stage.over:
                if axis == MODEL:
                    raise ValueError(
                        f"stages.{name}.over: stages over models are repeated for each as it is; leave it out"
                    )
                if axis not in axes:
                    there = f"there are {', '.join(axes)}" if axes else "matrix has no axis but that of models"
                    raise ValueError(f"stages.{name}.over: no axis {axis!r}; {there}")
                self._check_axis(name, stage, axis)
        for axis in axes:
            if not any(axis in stage.over for stage in self.stages.values()):
                raise ValueError(f"matrix.{axis}: no stage is repeated over it; give over: {axis} to one")

    def _check_axis(self, name: str, stage: JobSpec, axis: str) -> None:
        role = None if axis in FIXED else type(stage).roles().get(axis)
        if role is None:
            if not any(axis in self.stages[read].over for read in stage.reads):
                raise ValueError(
                    f"stages.{name}.over: {axis} is no setting of {stage.kind}, and no stage that it reads is over it"
                )
        elif role == "effort":
            raise ValueError(f"stages.{name}.over: {axis} changes no result; give one value of it to the stage")
        else:
            for number, value in enumerate(self.matrix[axis]):
                try:
                    with_fields(stage, {axis: value})
                except ValueError as error:
                    raise ValueError(f"matrix.{axis}.{number}: found {value!r}, of stages.{name}: {error}") from None

    def _check_places(self) -> None:
        """What is left out or has settings of its own is there. Raises ValueError."""
        places: list[tuple[str, tuple[Where, ...]]] = [("exclude", self.exclude), ("overrides", self.overrides)]
        for field, entries in places:
            for number, entry in enumerate(entries):
                if absent := [name for name in entry.stage if name not in self.stages]:
                    there = ", ".join(self.stages)
                    raise ValueError(f"{field}.{number}.stage: no stage {absent[0]!r}; there are {there}")
                met = [name for name in self.stages for at in self._points(name) if self._meets(entry, name, at)]
                if not met:
                    raise ValueError(
                        f"{field}.{number}: there is no such cell; see stages, models and values of the matrix"
                    )
                if isinstance(entry, Override):
                    for name in dict.fromkeys(met):
                        self._check_override(name, number, entry)

    def _meets(self, entry: Where, name: str, at: At) -> bool:
        return any(entry.meets(name, model, at) for model in self._all_models_of(name) or (None,))

    def _check_override(self, name: str, number: int, entry: Override) -> None:
        stage = self.stages[name]
        if isinstance(stage, OverZoo) and entry.model:
            raise ValueError(
                f"overrides.{number}.model: stages.{name} compares all its models in one way; leave model out, or write "
                "another stage"
            )
        if own := sorted(set(stage.over) & entry.set.keys()):
            raise ValueError(
                f"overrides.{number}.set.{own[0]}: stages.{name} is over {own[0]}, whose value names the cell; change matrix.{own[0]}"
            )
        try:
            for at in self._points(name):
                with_fields(stage, {**self._values(stage, at), **entry.set})
        except ValueError as error:
            raise ValueError(f"overrides.{number}.set: stages.{name}: {error}") from None

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
        for at in self._points(name):
            values = self._values(stage, at)
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
        except ValueError as error:
            raise ValueError(f"stages.{name}: with {canonical_json(fields)}: {error}") from None

    def _points(self, name: str) -> list[At]:
        return points(self.matrix, self.stages[name].over)

    @staticmethod
    def _values(stage: JobSpec, at: At) -> At:
        """The values on axes that are settings of the stage; the others choose among what it reads."""
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
        return tuple(model for model in self._all_models_of(name) if model not in left_out)

    def _all_models_of(self, name: str) -> tuple[str, ...]:
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
