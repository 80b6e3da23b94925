"""Which units get pages: the latents of each SAE and the neurons of each site that a cell reads; loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.activations import Forward, forward_effort, forward_of
from jobs.described import Units
from jobs.protocol import Cell, Known
from jobs.sae_tokens import SiteTokens, latents_of, patch_positions, tokens_of
from schemas.errors import BadSpec
from schemas.models import ModelFacts
from schemas.plans import Plan, StageSpec
from schemas.refs import site_path

USUAL_LATENTS = 16
"""Latents of an SAE per channel, where nobody says; the last shard takes what there is beyond them."""
FEATURES, NEURONS = "features", "neurons"


@dataclass(frozen=True)
class UnitSet:
    """The units of one site or SAE: the stage that has their top images, over which images, and about how many they are.

    grid: rows and columns of patches, or None; first_patch: the token of the first of them. moments: the stage that has
    statistics of neurons, if there is one.
    """

    stage: StageSpec
    units: Units
    forward: Forward
    rows: int
    grid: tuple[int, int] | None
    first_patch: int
    moments: StageSpec | None = None


def find_units(cell: Cell, known: Known, facts: ModelFacts) -> tuple[UnitSet, ...]:
    """Every set of units of the cell's model, each once; in an order of their own, whatever is read first.

    Raises:
        BadSpec: a stage of features does not describe them, or nothing that is read has units though extract stages are.
    """
    read = {plan.digest: plan for plans in cell.reads.values() for plan in plans if plan.stage.subject == facts.model}
    found = {one.stage.digest: one for one in _find(list(read.values()), known, facts)}
    if not found and (extracted := [name for name, plans in cell.reads.items() if _are_extracted(plans)]):
        raise BadSpec(
            f"reads: {', '.join(extracted)} stores no top_images of {facts.model}, so no unit of it would have a page; add "
            "top_images to its outputs, or leave it out"
        )
    return tuple(sorted(found.values(), key=lambda one: (one.units.key, one.stage.digest)))


def _find(plans: list[Plan], known: Known, facts: ModelFacts) -> Iterator[UnitSet]:
    moments = {_of_site(plan.stage): plan.stage for plan in plans if plan.stage.output == "activation_moments"}
    for plan in plans:
        if plan.stage.kind == "sae_features":
            yield _features(plan, known, facts)
        elif plan.stage.kind == "extract" and plan.stage.output == "top_images":
            yield _neurons(plan, facts, moments.get(_of_site(plan.stage)))


def _are_extracted(plans: Sequence[Plan]) -> bool:
    """Whether they are an extract stage; other kinds bring plans of extract with them."""
    return bool(plans) and all(plan.stage.kind == "extract" for plan in plans)


def _of_site(stage: StageSpec) -> tuple[str, tuple[tuple[str, str], ...]]:
    return str(stage.params["site"]), tuple(sorted(stage.inputs.items()))


def _features(plan: Plan, known: Known, facts: ModelFacts) -> UnitSet:
    stage, tokens = plan.stage, tokens_of(plan)
    params: Any = stage.params
    if "features" not in params["tables"]:
        raise BadSpec(
            f"reads: the sae_features stage of {facts.model} makes tables {', '.join(params['tables'])}; a page needs features; "
            "add it, and top_images for pictures, to its tables"
        )
    sae = f"sae:{stage.inputs['sae']}"
    latents = latents_of(known.stages.get(sae)) or USUAL_LATENTS * tokens.width(facts)
    grid = tuple(params["grid"]) if params["grid"] is not None else None
    units = Units(str(params["site"]), FEATURES, sae)
    return UnitSet(stage, units, forward_effort(plan), latents, grid, int(params["first_patch"]))


def _neurons(plan: Plan, facts: ModelFacts, moments: StageSpec | None) -> UnitSet:
    site = str(plan.stage.params["site"])
    forward = forward_of(plan)
    tokens = SiteTokens(forward=forward, site=site, round_to="fp32", stored=False)
    where: Any = patch_positions(facts, tokens)
    grid = tuple(where["grid"]) if where["grid"] is not None else None
    return UnitSet(
        plan.stage,
        Units(site, NEURONS, None),
        forward,
        tokens.width(facts),
        grid,
        where["first_patch"],
        moments,
    )


def same_units(one: Units, site: str, sae: str | None) -> bool:
    """Whether a row is about these units: latents are those of an SAE wherever it is applied, neurons those of a path."""
    return one.sae == sae if one.sae or sae else site_path(one.site) == site_path(site)
