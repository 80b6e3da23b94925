"""Geometry cells to plans: one stage per describe stage with method miclip; loads no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import JsonValue

from jobs.activations import get_facts
from jobs.described import Described, find_described
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, Known
from miclip_core.concepts.names import WORLD_CATEGORIES, world_concepts
from schemas.errors import BadSpec
from schemas.evaluate_specs import GeometrySpec
from schemas.plans import Plan, Round, StageSpec

METHOD = 1
TABLES = {"geometry": {"measure": ("geometry_points", "geometry_summary")}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"geometry": ()}


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The plans of every MICLIP variant on every kind of units of one model.

    Raises:
        NotInspected: the model is not known yet.
        BadSpec: no stage that is read has method miclip, fewer than two groups have a concept that it describes, or its
            lists are shorter than tau.
    """
    spec = cell.spec
    assert isinstance(spec, GeometrySpec)
    facts = get_facts(cell, known)
    read = find_described(cell)
    ours = [described for described in read if described.method == "miclip"]
    if not ours:
        has = ", ".join(sorted({described.method for described in read})) or "nothing"
        raise BadSpec(
            f"stages.{cell.name}.reads: found {has} of {facts.model}; expected a describe stage with methods: [miclip], which "
            "knows where units lie in the space of a CLIP"
        )
    return tuple(_plan(cell.name, spec, described, _groups(cell.name, spec, described)) for described in ours)


def _groups(name: str, spec: GeometrySpec, described: Described) -> dict[str, list[str]]:
    """Group -> its concepts; of the demo world's values those that are described."""
    asked = dict(_world_groups()) if isinstance(spec.groups, str) else spec.groups
    there = {group: sorted(set(members) & set(described.concepts)) for group, members in asked.items()}
    if sum(bool(members) for members in there.values()) < 2:
        few = ", ".join(described.concepts[:5]) + (", ..." if len(described.concepts) > 5 else "")
        raise BadSpec(
            f"stages.{name}.groups: found {', '.join(group for group, members in there.items() if members) or 'no group'} with "
            f"a concept among those described ({few}); expected at least two; give groups: {{animal: [...], vehicle: [...]}} "
            "of these concepts, or describe others"
        )
    if isinstance(spec.groups, str):
        return {group: members for group, members in there.items() if members}
    return {group: sorted(members) for group, members in asked.items()}


def _world_groups() -> Iterator[tuple[str, tuple[str, ...]]]:
    for category in WORLD_CATEGORIES:
        yield category, world_concepts((category,)).names


def _plan(name: str, spec: GeometrySpec, described: Described, groups: dict[str, list[str]]) -> Plan:
    of_units = described.stage.inputs
    inputs = {"units": described.stage.digest, "encoder": of_units["encoder"]}
    if described.units.sae is not None:
        inputs["sae"] = of_units["sae"]
    params: dict[str, JsonValue] = {
        "site": described.units.site,
        "unit_kind": described.units.unit_kind,
        "method": described.method,
        "variant": described.variant.name,
        "seed": described.variant.seed,
        "groups": {group: list(members) for group, members in groups.items()},
        "tau": described.first(spec.tau, f"stages.{name}.tau"),
        "neighbours": spec.neighbours,
        "permutations": spec.permutations,
        "perplexity": spec.perplexity,
        "random_seed": spec.seed,
    }
    stage = StageSpec(
        kind="geometry", method=METHOD, subject=described.stage.subject, output="geometry", params=params, inputs=inputs
    )
    return Plan(
        stage=stage,
        rounds=(Round(name="measure", rows=1, shard_rows=1),),
        worker=f"geometry {stage.subject}",
        effort={"concepts": list(described.concepts)},
    )


def estimate(plan: Plan, known: Known) -> Estimate:
    """What a worker holds; the number of units is known when they are found."""
    params: Any = plan.stage.params
    groups = sum(len(members) for members in params["groups"].values())
    return Estimate(
        flops=2 * params["permutations"] * groups * params["tau"] * params["neighbours"], worker_memory=LIBRARY_BYTES
    )
