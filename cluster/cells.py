"""A pipeline spread over its matrix: pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, groupby

from jobs.concepts import concept_files
from jobs.protocol import Cell
from schemas.cells import ForwardCell, Images, OverZoo
from schemas.concept_specs import DescribeSpec
from schemas.errors import UsageError
from schemas.pipeline_spec import PipelineSpec, Point
from schemas.plans import Plan, Resources
from schemas.refs import SaeRef, Site
from schemas.sae_specs import ImportSaeSpec, SaeFeaturesSpec


@dataclass(frozen=True)
class CellPlans:
    """One cell and the plans it became; `error` says why it cannot be planned.

    refusal: its own fault, rather than that of what it waits for: it cannot be planned later either.
    """

    cell: Cell
    plans: tuple[Plan, ...] = ()
    error: str = ""
    refusal: UsageError | None = None


def spread(spec: PipelineSpec, name: str) -> Iterator[Cell]:
    """The cells of one stage: in each place on the axes that it is over one per model of its own list or of the matrix, or
    just one; over a zoo also one per pair of models, and one for all."""
    for _, points in groupby(spec.points_of(name), key=lambda point: point.at):
        cells = [_make_cell(spec, name, point) for point in points]
        zoo = tuple(cell.model for cell in cells if cell.model is not None and isinstance(cell.spec, OverZoo))
        yield from (replace(cell, zoo=zoo) for cell in cells)
        if zoo:
            whole = replace(cells[0], model=None, zoo=zoo)
            yield from (replace(whole, pair=pair) for pair in combinations(zoo, 2))
            yield whole


def _make_cell(spec: PipelineSpec, name: str, point: Point) -> Cell:
    stage = point.setting
    return Cell(
        name=name,
        spec=stage,
        model=point.model,
        at=point.at,
        images=getattr(stage, "images", None) or spec.images,
        clip=spec.clip_of(name, stage),
        resources=stage.resources if "resources" in stage.model_fields_set else spec.resources or Resources(),
    )


def cells_read(cell: Cell, planned: Mapping[str, Sequence[CellPlans]], name: str | None = None) -> list[CellPlans]:
    """The cells that a cell reads (from one stage, or all): those of its models, and in its place on
    the axes of both, where the other stage has several."""
    names = cell.spec.reads if name is None else (name,)
    met = (other for name in names for other in planned[name] if _meet(cell, other.cell))
    return [o for o in met if o.plans or not (cell.spec.without_others and len(o.cell.models) > 1)]


def _meet(cell: Cell, other: Cell) -> bool:
    """Whether they are about a model in common, or one of them is about none; and in one place on every axis of both."""
    if any(other.at[axis] != value for axis, value in cell.at.items() if axis in other.at):
        return False
    return not cell.models or not other.models or not set(cell.models).isdisjoint(other.models)


def with_reads(cell: Cell, planned: Mapping[str, Sequence[CellPlans]]) -> Cell:
    """The cell with the plans it reads."""
    reads = {
        name: tuple(plan for other in cells_read(cell, planned, name) for plan in other.plans)
        for name in cell.spec.reads
    }
    return replace(cell, reads=reads)


@dataclass(frozen=True)
class Needs:
    """What must be inspected, indexed or looked up before a pipeline can be planned."""

    models: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """model ref -> raw module sites that inspection must record the shape of."""
    images: tuple[Images, ...] = ()
    files: tuple[str, ...] = ()
    """Locations of foreign SAEs, and of models beside the checkpoints."""
    stages: tuple[str, ...] = ()
    """Refs of stages that were published before."""
    texts: tuple[str, ...] = ()
    """Refs of files that list concepts."""


def models_needed(cell: Cell) -> tuple[str, ...]:
    """The models that a cell is about, then those that it needs beside them."""
    return (*cell.models, *(other for other in (cell.clip, *cell.spec.beside) if other is not None))


def find_needs(spec: PipelineSpec) -> Needs:
    """Models, image sets and SAEs of every cell, without repeats."""
    models: dict[str, list[str]] = {}
    images: list[Images] = []
    saes: list[SaeRef] = []
    files: list[str] = []
    texts: list[str] = []
    for name in spec.stages:
        for cell in spread(spec, name):
            for model in cell.models:
                modules = models.setdefault(model, [])
                sites = [Site.parse(text) for text in cell.spec.sites] if isinstance(cell.spec, ForwardCell) else []
                modules += [site.path for site in sites if site.is_module]
            for other in models_needed(cell)[len(cell.models) :]:
                models.setdefault(other, [])
            reads_images = cell.spec.needs_images(spec.kinds_read(name))
            if reads_images and cell.images is not None and cell.images not in images:
                images.append(cell.images)
            named = cell.spec.saes if isinstance(cell.spec, (ImportSaeSpec, SaeFeaturesSpec)) else ()
            saes += [SaeRef.parse(text) for text in named]
            files += cell.spec.folders
            if isinstance(cell.spec, DescribeSpec):
                texts += concept_files(cell.spec.concepts)
    return Needs(
        models={m: tuple(sorted(set(mods))) for m, mods in models.items()},
        images=tuple(images),
        files=tuple(dict.fromkeys([*(ref.location for ref in saes if ref.source != "sae"), *files])),
        stages=tuple(dict.fromkeys(str(ref) for ref in saes if ref.source == "sae")),
        texts=tuple(dict.fromkeys(texts)),
    )
