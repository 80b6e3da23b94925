"""Attention_maps cells to plans: one stage per describe stage of features, siblings of one pass over the images; loads no torch."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import JsonValue

from jobs.activations import Forward, forward_effort, get_facts, make_forward
from jobs.concepts import concept_columns
from jobs.described import Described, find_described
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, Known
from miclip_core.align.attending import attending_block
from schemas.base import digest
from schemas.errors import BadSpec, UnknownSite, UnsupportedBlock
from schemas.intervene_specs import AttentionMapsSpec
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec
from schemas.refs import Site

METHOD = 1
TABLES: dict[str, dict[str, tuple[str, ...]]] = {"maps": {"map": ("attention_maps",)}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"maps": ()}
_COPIES = 6
"""Of the tokens of one image with each of its concepts: as they are, encoded, decoded, and in the next block."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The maps of one model: every list of features that is read; lists of neurons, and of features elsewhere, give none.

    Raises:
        NotInspected: the model or the image set is not known yet.
        BadSpec: no features are read whose patches a class token looks at; a concept that is not described; lists that
            are shorter than tau.
    """
    spec = cell.spec
    assert isinstance(spec, AttentionMapsSpec)
    facts, forward = get_facts(cell, known), make_forward(cell, known)
    effort: dict[str, JsonValue] = {"forward": forward.model_dump(mode="json"), "grid": list(facts.grid)}
    worker = f"attention_maps {facts.model} {digest([forward.inputs, forward.params])}"
    rounds = (Round(name="map", rows=forward.rows, shard_rows=spec.shard_rows),)
    return tuple(
        Plan(stage=_stage(cell, facts, forward, found, block), rounds=rounds, worker=worker, effort=effort)
        for found, block in _seen(cell, facts)
    )


def _seen(cell: Cell, facts: ModelFacts) -> Iterator[tuple[Described, int]]:
    """Features that are read and the block whose class token looks at them; features at other sites are left out."""
    described = [d for d in find_described(cell) if d.stage.subject == facts.model and d.units.sae is not None]
    if not described:
        raise BadSpec(
            f"stages.{cell.name}.reads: no features of {facts.model} were described; read a describe stage that reads an "
            "SAE of it"
        )
    found, problem = [], ""
    for some in described:
        try:
            found.append((some, attending_block(facts, Site.parse(some.units.site))))
        except (UnknownSite, UnsupportedBlock) as error:
            problem = problem or str(error)
    if not found:
        raise BadSpec(f"stages.{cell.name}.reads: {problem}")
    yield from found


def _stage(cell: Cell, facts: ModelFacts, forward: Forward, found: Described, block: int) -> StageSpec:
    spec = cell.spec
    assert isinstance(spec, AttentionMapsSpec) and found.units.sae is not None
    images = None if cell.images is None else cell.images.ref
    return StageSpec(
        kind="attention_maps",
        method=METHOD,
        subject=facts.model,
        output="maps",
        params={
            **forward.params,
            "site": found.units.site,
            "layer": block,
            "unit_kind": found.units.unit_kind,
            "method": found.method,
            "variant": found.variant.name,
            "seed": found.variant.seed,
            "concepts": list(found.concepts),
            "chosen": list(_chosen(cell, found)),
            "tau": found.first(spec.tau, f"stages.{cell.name}.tau"),
            "activation": spec.activation,
            "labels_from": list(spec.labels_from or concept_columns(found.concepts, found.concepts, images)),
            "images_per_concept": spec.images_per_concept,
            "whole_view": facts.sees_whole(spec.geometry),
        },
        inputs={
            **forward.inputs,
            "units": found.stage.digest,
            "sae": found.units.sae.removeprefix("sae:"),
            "labels": forward.index,
        },
    )


def _chosen(cell: Cell, found: Described) -> Iterator[int]:
    """Numbers of the concepts that the spec names; all of them if it names none."""
    spec = cell.spec
    assert isinstance(spec, AttentionMapsSpec)
    number = {name: m for m, name in enumerate(found.concepts)}
    if missing := [name for name in spec.concepts if name not in number]:
        some = ", ".join(found.concepts[:5]) + ", ..." * (len(number) > 5)
        raise BadSpec(
            f"stages.{cell.name}.concepts: {', '.join(missing[:5])} not among the {len(number)} concepts of "
            f"{found.stage.detail} ({some}); describe units with these, or give others"
        )
    yield from sorted({number[name] for name in spec.concepts}) if spec.concepts else range(len(number))


def grid_of(plan: Plan) -> tuple[int, int]:
    """Rows and columns of patches."""
    grid = plan.effort["grid"]
    assert isinstance(grid, list)
    return int(str(grid[0])), int(str(grid[1]))


def estimate(plan: Plan, known: Known) -> Estimate:
    """Two passes for each concept and image, at most: as the model is, and with its features alone.

    How many images show which concept is not known before labels are read.
    """
    facts = known.models.get(plan.stage.subject)
    if facts is None:
        return Estimate()
    params = plan.stage.params
    chosen, wanted = params["chosen"], int(str(params["images_per_concept"]))
    assert isinstance(chosen, list)
    rows, columns = grid_of(plan)
    pairs = len(chosen) * min(wanted, forward_effort(plan).rows)
    share = (int(str(params["layer"])) + 1) / max(1, facts.n_blocks)
    tokens = _COPIES * (rows * columns + facts.n_prefix) * facts.width
    return Estimate(
        images=forward_effort(plan).rows,
        flops=round(2 * pairs * share * facts.flops),
        bytes=2 * pairs * (4 * rows * columns + 200),
        worker_memory=LIBRARY_BYTES + 8 * facts.params + 4 * tokens * min(len(chosen), 32),
    )
