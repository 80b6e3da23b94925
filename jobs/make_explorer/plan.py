"""Explorer cells to plans: a stage per set of units, a shard per range of them, and a last one for the index; loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue

from jobs.activations import get_facts
from jobs.described import find_described
from jobs.explained import find_explained
from jobs.make_explorer.units import FEATURES, UnitSet, find_units, same_units
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, Known
from schemas.base import canonical_json
from schemas.explorer_specs import ExplorerSpec
from schemas.models import Geometry, ModelFacts
from schemas.plans import PAIR, Plan, Round, StageSpec, load_json

METHOD = 2
PAGES, INDEX = "pages", "index"
OUTPUT = "explorer"
TABLES = {OUTPUT: {PAGES: ("explorer_features",), INDEX: ("explorer_index",)}}
ARTIFACTS: dict[str, tuple[str, ...]] = {OUTPUT: ()}
TILE, COVER_TILE, COVERS = 64, 48, 4
"""Pixels of a picture on a page, as in the index of images; of one in a list; and how many a list shows."""
MOST_GRID = 28
"""Rows and columns of a map; finer ones are pooled."""
TILE_BYTES, ROW_BYTES, THUMBNAIL_BYTES = 1500, 6000, 20_000
"""Of a stored picture with its map, of what else a row says, and of one picture while a shard is made."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """A stage for the latents of every SAE and the neurons of every site of one model; none for a model without either.

    Raises:
        NotInspected: the model is not known yet. BadSpec: a stage of features does not describe them.
    """
    assert isinstance(cell.spec, ExplorerSpec)
    facts = get_facts(cell, known)
    return tuple(_plan(cell, cell.spec, facts, units) for units in find_units(cell, known, facts))


def _plan(cell: Cell, spec: ExplorerSpec, facts: ModelFacts, one: UnitSet) -> Plan:
    is_square = one.forward.params["geometry"] == "square"
    params: dict[str, JsonValue] = {
        "site": one.units.site,
        "unit_kind": one.units.unit_kind,
        "top": spec.top,
        "names": spec.names,
        "partners": spec.partners,
        "geometry": "square" if is_square else "model",
        "grid": list(one.grid) if one.grid else None,
        "first_patch": one.first_patch,
    }
    inputs = {"units": one.stage.digest, "index": one.forward.index, **dict(_beside(cell, facts, one))}
    if one.units.sae is not None:
        inputs["sae"] = one.units.sae.removeprefix("sae:")
    if one.moments is not None:
        inputs["moments"] = one.moments.digest
    stage = StageSpec(kind="explorer", method=METHOD, subject=facts.model, output=OUTPUT, params=params, inputs=inputs)
    rounds = (
        Round(name=PAGES, rows=one.rows, shard_rows=spec.shard_units),
        Round(name=INDEX, rows=1, shard_rows=1),
    )
    effort: dict[str, JsonValue] = {
        "geometry": facts.geometry.model_dump(mode="json") if facts.geometry else None,
        "judges": _judges(cell, inputs),
    }
    return Plan(stage=stage, rounds=rounds, worker=f"explorer {facts.model} {stage.digest}", effort=effort)


def _beside(cell: Cell, facts: ModelFacts, one: UnitSet) -> Iterator[tuple[str, str]]:
    """(name, digest) of every stage that knows something of these units, numbered in an order of their own."""
    described = [d for d in find_described(cell) if d.stage.subject == facts.model]
    found = {"names": [d.stage.digest for d in described if same_units(one.units, d.units.site, d.units.sae)]}
    if one.units.sae is not None:
        found["texts"] = [e.digest for e in find_explained(cell) if f"sae:{e.sae}" == one.units.sae]
    read = {plan.digest: plan.stage for plans in cell.reads.values() for plan in plans}
    for digest, stage in sorted(read.items()):
        if (name := _role(stage, facts, one)) is not None:
            found.setdefault(name, []).append(digest)
    for name, digests in found.items():
        yield from ((f"{name}.{number}", digest) for number, digest in enumerate(digests))


def _judges(cell: Cell, inputs: Mapping[str, str]) -> dict[str, JsonValue]:
    """Describe stage of a page -> the stages that judged its very lists; another's verdict is of other concepts."""
    judges: dict[str, JsonValue] = {}
    stages = {plan.digest: plan.stage for plans in cell.reads.values() for plan in plans}
    for names in _in_order(inputs, "names"):
        judges[names] = [one for one in _in_order(inputs, "judged") if names in stages[one].inputs.values()]
    return judges


def _role(stage: StageSpec, facts: ModelFacts, one: UnitSet) -> str | None:
    """What a stage of another kind tells of these units, if it may."""
    of_sae = one.units.sae is not None and f"sae:{stage.inputs.get('sae')}" == one.units.sae
    match stage.kind, stage.output:
        case "evaluate", _ if stage.subject == facts.model:
            return "judged"
        case "score_explanations", "summary" if of_sae:
            return "scores"
        case "map_explanations", _ if of_sae:
            return "map"
        case "mine_rosetta", "pair" if stage.inputs["a"] != stage.inputs["b"]:
            return "partners" if facts.model in stage.subject.split(PAIR) else None
    return None


def inputs_of(plan: Plan, role: str) -> list[str]:
    """The stages that tell one kind of thing, in the order of their numbers."""
    return _in_order(plan.stage.inputs, role)


def _in_order(inputs: Mapping[str, str], role: str) -> list[str]:
    named = [name for name in inputs if name.startswith(f"{role}.")]
    return [inputs[name] for name in sorted(named, key=lambda name: int(name.rpartition(".")[2]))]


def judges_of(plan: Plan, stage: str) -> list[str]:
    """The stages that judged the lists of this describe stage."""
    judges: Any = plan.effort["judges"]
    return list(judges[stage])


def geometry_of(plan: Plan) -> Geometry | None:
    """How the model cuts an image, where it does not see the square that all models share."""
    stored = plan.effort["geometry"]
    return None if stored is None else load_json(Geometry, canonical_json(stored))


def is_of_features(plan: Plan) -> bool:
    """Whether the units are latents of an SAE."""
    return plan.stage.params["unit_kind"] == FEATURES


def estimate(plan: Plan, known: Known) -> Estimate:
    """Bytes of what is stored, and pictures and rows of one shard in memory; it takes seconds."""
    params: Any = plan.stage.params
    pages = plan.rounds[0]
    held = min(pages.rows, pages.shard_rows) * (ROW_BYTES + params["top"] * THUMBNAIL_BYTES)
    stored = pages.rows * (ROW_BYTES + params["top"] * TILE_BYTES)
    return Estimate(bytes=stored, memory=held + pages.rows * ROW_BYTES, worker_memory=LIBRARY_BYTES)
