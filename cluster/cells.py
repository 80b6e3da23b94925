"""A pipeline spread over its matrix: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobs.protocol import Cell
from schemas.plans import Plan, Resources
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


def cells_read(cell: Cell, planned: Mapping[str, Sequence[CellPlans]], name: str | None = None) -> list[CellPlans]:
    """The cells that a cell reads (from one stage, or all): those of its model where the other stage has several."""
    names = cell.spec.reads if name is None else (name,)
    return [o for n in names for o in planned[n] if cell.model is None or o.cell.model in (None, cell.model)]


def with_reads(cell: Cell, planned: Mapping[str, Sequence[CellPlans]]) -> Cell:
    """The cell with the stages it reads."""
    reads = {
        name: tuple(plan.stage for other in cells_read(cell, planned, name) for plan in other.plans)
        for name in cell.spec.reads
    }
    return replace(cell, reads=reads)


@dataclass(frozen=True)
class Needs:
    """What must be inspected and indexed before a pipeline can be planned."""

    models: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """model ref -> raw module sites that inspection must record the shape of."""
    images: tuple[Images, ...] = ()


def find_needs(spec: PipelineSpec) -> Needs:
    """Models and image sets of every cell, without repeats."""
    models: dict[str, list[str]] = {}
    images: list[Images] = []
    for name in spec.stages:
        for cell in spread(spec, name):
            if cell.model is not None:
                modules = models.setdefault(cell.model, [])
                sites = [Site.parse(text) for text in getattr(cell.spec, "sites", ())]
                modules += [site.path for site in sites if site.is_module]
            reads_images = isinstance(cell.spec, ExtractSpec) and set(cell.spec.outputs) - {"text_embeddings"}
            if reads_images and cell.images is not None and cell.images not in images:
                images.append(cell.images)
    return Needs({m: tuple(sorted(set(mods))) for m, mods in models.items()}, tuple(images))
