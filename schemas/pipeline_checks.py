"""What no pipeline can be, and no cell of one: said at the field that is to be changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from schemas.base import canonical_json
from schemas.cells import OverModels, OverZoo
from schemas.matrix import FIXED, MODEL, At, NotTaken, Override, Where, with_fields
from schemas.specs import READS, JobSpec
from schemas.words import any_of, nearest

if TYPE_CHECKING:
    from schemas.pipeline_spec import PipelineSpec


def check_pipeline(spec: PipelineSpec) -> None:
    """Axes are used and taken, exclusions and overrides meet cells, and every stage has what its kind needs.

    Raises:
        ValueError: with the field in front.
    """
    for name in spec.stages:
        _check_over(spec, name)
    for axis in spec.matrix:
        if axis != MODEL and not any(axis in stage.over for stage in spec.stages.values()):
            raise ValueError(f"matrix.{axis}: no stage is repeated over it; give over: {axis} to one")
    for field, entries in (("exclude", spec.exclude), ("overrides", spec.overrides)):
        for number, entry in enumerate(entries):
            _check_entry(spec, f"{field}.{number}", entry)
    for name in spec.stages:
        _check_stage(spec, name)


# ---------------------------------------------------------------- axes


def _check_over(spec: PipelineSpec, name: str) -> None:
    stage = spec.stages[name]
    axes = [axis for axis in spec.matrix if axis != MODEL]
    if len(set(stage.over)) != len(stage.over):
        raise ValueError(f"stages.{name}.over: the same axis twice: {', '.join(stage.over)}")
    for axis in stage.over:
        if axis == MODEL:
            raise ValueError(f"stages.{name}.over: stages over models are repeated for each as it is; leave it out")
        if axis not in axes:
            raise ValueError(f"stages.{name}.over: {_no_axis(axis, axes)}")
        _check_axis(spec, name, axis)


def _no_axis(axis: str, axes: Sequence[str]) -> str:
    there = f"there are {', '.join(axes)}" if axes else "matrix has no axis but that of models"
    return f"no axis {axis!r}; {there}{nearest(axis, axes)}"


def _check_axis(spec: PipelineSpec, name: str, axis: str) -> None:
    stage = spec.stages[name]
    role = None if axis in FIXED else type(stage).roles().get(axis)
    if role is None:
        if not any(axis in spec.stages[read].over for read in stage.reads):
            raise ValueError(
                f"stages.{name}.over: {axis} is no setting of {stage.kind}, and no stage that it reads is over it"
            )
    elif role == "effort":
        raise ValueError(f"stages.{name}.over: {axis} changes no result; give one value of it to the stage")
    else:
        _check_values(spec, name, axis)


def _check_values(spec: PipelineSpec, name: str, axis: str) -> None:
    """A stage takes every value of its axis, and gives the field no other, which would be of no cell."""
    stage = spec.stages[name]
    taken = []
    for number, value in enumerate(spec.matrix[axis]):
        try:
            taken.append(getattr(with_fields(stage, {axis: value}), axis))
        except NotTaken as error:
            raise error.at(f"matrix.{axis}.{number}", f"stages.{name}") from None
    if axis in stage.model_fields_set and getattr(stage, axis) not in taken:
        found = canonical_json(stage.model_dump(mode="json", include={axis})[axis])
        raise ValueError(
            f"stages.{name}.{axis}: found {found}, but the stage is over {axis}, whose values are "
            f"{any_of([canonical_json(value) for value in spec.matrix[axis]])}; leave it out here, or add it to matrix.{axis}"
        )


# ---------------------------------------------------------------- exclusions and overrides


def _check_entry(spec: PipelineSpec, field: str, entry: Where) -> None:
    """What is left out or has settings of its own is there. Raises ValueError."""
    for name in entry.stage:
        if name not in spec.stages:
            there = ", ".join(spec.stages)
            raise ValueError(f"{field}.stage: no stage {name!r}; there are {there}{nearest(name, spec.stages)}")
    names = entry.stage or tuple(spec.stages)
    _check_models(spec, field, entry.model, names)
    _check_at(spec, field, entry, names)
    met = [name for name in names for at in spec.places(name) if _meets(spec, entry, name, at)]
    if not met:
        raise ValueError(
            f"{field}: no cell is all of this; a stage that has these models, or is over these axes, lacks the other"
        )
    if isinstance(entry, Override):
        for name in dict.fromkeys(met):
            _check_override(spec, field, entry, name)


def _check_models(spec: PipelineSpec, field: str, models: Iterable[str], names: Sequence[str]) -> None:
    known = list(dict.fromkeys(model for name in names for model in spec.all_models_of(name)))
    for model in models:
        if model not in known:
            expected = f"expected {any_of(known)}" if known else "expected none"
            of = f"the models of {_stages(names)}" if len(names) < len(spec.stages) else "the models of this pipeline"
            raise ValueError(f"{field}.model: found {canonical_json(model)}, {expected}: {of}{nearest(model, known)}")


def _check_at(spec: PipelineSpec, field: str, entry: Where, names: Sequence[str]) -> None:
    for axis, values in entry.at.items():
        axes = [known for known in spec.matrix if known != MODEL and any(known in spec.stages[n].over for n in names)]
        if axis == MODEL:
            raise ValueError(f"{field}.at.{axis}: models are named beside it; write {field}.model")
        if axis not in spec.matrix:
            raise ValueError(f"{field}.at.{axis}: {_no_axis(axis, axes)}")
        if axis not in axes:
            raise ValueError(
                f"{field}.at.{axis}: no cell of {_stages(names)} has a place on it; give over: {axis} to one"
            )
        known = spec.matrix[axis]
        for value in values:
            if value not in known:
                raise ValueError(
                    f"{field}.at.{axis}: found {canonical_json(value)}, expected {any_of([canonical_json(v) for v in known])}"
                    f"{nearest(value, [v for v in known if isinstance(v, str)]) if isinstance(value, str) else ''}"
                )


def _stages(names: Sequence[str]) -> str:
    return any_of([f"stages.{name}" for name in names])


def _meets(spec: PipelineSpec, entry: Where, name: str, at: At) -> bool:
    return any(entry.meets(name, model, at) for model in spec.all_models_of(name) or (None,))


def _check_override(spec: PipelineSpec, field: str, entry: Override, name: str) -> None:
    stage = spec.stages[name]
    if isinstance(stage, OverZoo) and entry.model:
        raise ValueError(
            f"{field}.model: stages.{name} compares all its models in one way; leave model out, or write another stage"
        )
    if own := sorted(set(stage.over) & entry.set.keys()):
        raise ValueError(
            f"{field}.set.{own[0]}: stages.{name} is over {own[0]}, whose value names the cell; change matrix.{own[0]}"
        )
    try:
        for at in spec.places(name):
            with_fields(stage, {**spec.values(name, at), **entry.set})
    except NotTaken as error:
        raise error.at(f"{field}.set", f"stages.{name}") from None


# ---------------------------------------------------------------- what a stage needs


def _check_stage(spec: PipelineSpec, name: str) -> None:
    stage = spec.stages[name]
    kinds = spec.kinds_read(name)
    if unread := kinds - READS.get(stage.kind, kinds):
        raise ValueError(
            f"stages.{name}.reads: {stage.kind} cannot read {', '.join(sorted(unread))}; it reads "
            f"{', '.join(sorted(READS[stage.kind]))}"
        )
    if isinstance(stage, OverModels) and not spec.all_models_of(name):
        raise ValueError(f"stages.{name}: no model; give stages.{name}.model or matrix.model")
    settings = {id(point.setting): point.setting for point in spec.points_of(name)}
    if not settings or (isinstance(stage, OverModels) and not spec.models_of(name)):
        raise ValueError(f"exclude: nothing is left of stages.{name}; leave that stage out, or exclude less")
    for setting in settings.values():
        _check_setting(spec, name, setting, kinds)


def _check_setting(spec: PipelineSpec, name: str, setting: JobSpec, kinds: set[str]) -> None:
    """What some cells of a stage cannot do without. Raises ValueError."""
    if lacked := setting.lacks(kinds):
        raise ValueError(f"stages.{name}.reads: {lacked}")
    if setting.needs_clip and spec.clip_of(name, setting) is None:
        raise ValueError(f"stages.{name}: {setting.no_clip}; give clip: open_clip:ViT-B-16/openai, for example")
    has_images = spec.images is not None or getattr(setting, "images", None) is not None
    if setting.needs_images(kinds) and not has_images:
        raise ValueError(f"stages.{name}: no images; give images: {{ref: folder:/path}}")
