"""A pipeline spread over its matrix: pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from jobs.protocol import Cell
from schemas.plans import Plan, Resources, StageSpec
from schemas.refs import Site
from schemas.specs import ExtractSpec, Images, JobSpec, PipelineSpec


@dataclass(frozen=True)
class CellPlans:
    """One cell and the plans it became; `error` says why it cannot be planned."""

    cell: Cell
    plans: tuple[Plan, ...] = ()
    error: str = ""


def spread(spec: PipelineSpec, name: str) -> Iterator[Cell]:
    """The cells of one stage: one per model of its own list or of the matrix, or just one."""
    stage = spec.stages[name]
    resources = stage.resources if "resources" in stage.model_fields_set else spec.resources or Resources()
    images = getattr(stage, "images", None) or spec.images
    for model in _models(spec, stage):
        yield Cell(name=name, spec=stage, model=model, images=images, resources=resources)


def _models(spec: PipelineSpec, stage: JobSpec) -> tuple[str | None, ...]:
    if not isinstance(stage, ExtractSpec):
        return (None,)
    if stage.model is None:
        return spec.matrix["model"]
    return (stage.model,) if isinstance(stage.model, str) else stage.model


def with_reads(cell: Cell, planned: dict[str, list[CellPlans]]) -> Cell:
    """The cell with the stages it reads: those of the same model where the other stage has cells per model."""
    reads: dict[str, tuple[StageSpec, ...]] = {}
    for name in cell.spec.reads:
        others = planned[name]
        same = [o for o in others if cell.model is None or o.cell.model in (None, cell.model)]
        reads[name] = tuple(plan.stage for other in same for plan in other.plans)
    return Cell(cell.name, cell.spec, cell.model, cell.images, cell.resources, reads)


@dataclass(frozen=True)
class Needs:
    """What must be inspected and indexed before a pipeline can be planned."""

    models: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """model ref -> raw module sites that inspection must record the shape of."""
    images: tuple[Images, ...] = ()
    trusted: frozenset[str] = frozenset()


def find_needs(spec: PipelineSpec) -> Needs:
    """Models and image sets of every cell, without repeats."""
    models: dict[str, list[str]] = {}
    images: list[Images] = []
    trusted: set[str] = set()
    for name in spec.stages:
        for cell in spread(spec, name):
            if cell.model is not None:
                modules = models.setdefault(cell.model, [])
                sites = [Site.parse(text) for text in getattr(cell.spec, "sites", ())]
                modules += [site.path for site in sites if site.is_module]
            if isinstance(cell.spec, ExtractSpec):
                trusted.update(cell.spec.trust_remote_code)
                if set(cell.spec.outputs) - {"text_embeddings"} and cell.images not in (None, *images):
                    images.append(cell.images)  # type: ignore[arg-type]
    return Needs({m: tuple(sorted(set(mods))) for m, mods in models.items()}, tuple(images), frozenset(trusted))
