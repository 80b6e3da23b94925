"""Intervene cells to plans: one stage per describe stage and error mode, siblings of one pass over the images; loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import JsonValue

from jobs.activations import Forward, forward_effort, get_facts, make_forward
from jobs.described import Described, find_described
from jobs.memory import LIBRARY_BYTES
from jobs.predictions import HEAD, choose_classes, class_names
from jobs.protocol import Cell, Estimate, Known
from schemas.base import canonical_json, digest
from schemas.errors import BadSpec
from schemas.intervene import Change, ErrorMode
from schemas.intervene_specs import InterveneSpec
from schemas.models import ModelFacts, positions_selected, resolve_sites
from schemas.plans import Plan, Round, StageSpec, load_json
from schemas.refs import Sample, Site

METHOD = 1
MAP, MERGE = "map", "merge"
TABLES = {"effects": {MAP: (), MERGE: ("intervention_eval", "intervention_summary")}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"effects": ()}
_STEPS = re.compile(r"resid_pre\.\d+|conv\.\d+\.\d+\.out")
_COPIES = 6
"""Of one batch at the site: as it is, encoded and decoded, changed, and what the next layer makes of it."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The plans of one model: every list of units that is read, with what an SAE does not reconstruct kept or dropped.

    Raises:
        NotInspected: the model or the image set is not known yet.
        UnknownSite: a site of the units has no tokens of the kind that `positions` asks for.
        BadSpec: classes that the model does not tell or that no unit was sought for, lists that are shorter than tau, or
            features at positions that their SAE does not know.
    """
    spec = cell.spec
    assert isinstance(spec, InterveneSpec)
    facts, forward = get_facts(cell, known), make_forward(cell, known)
    described = [found for found in find_described(cell) if found.stage.subject == facts.model]
    if not described:
        raise BadSpec(f"stages.{cell.name}.reads: no units of {cell.model} were described; read a describe stage of it")
    about, names = _classes(cell, facts)
    stages = [stage for found in described for stage in _stages(cell, facts, forward, found, about, names)]
    passes = {pass_of(stage) for stage in stages}
    effort: dict[str, JsonValue] = {
        "forward": forward.model_dump(mode="json"),
        "classes": list(names),
        "passes_per_stage": len(passes) / len(stages),
    }
    shared = [forward.inputs, forward.params, about, spec.labels_from]
    rounds = (
        Round(name=MAP, rows=forward.rows, shard_rows=spec.shard_rows),
        Round(name=MERGE, rows=1, shard_rows=1),
    )
    worker = f"intervene {facts.model} {digest(shared)}"
    return tuple(Plan(stage=stage, rounds=rounds, worker=worker, effort=effort) for stage in stages)


# ---------------------------------------------------------------- classes


def _classes(cell: Cell, facts: ModelFacts) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    """Zero-shot classes for a model with a text tower, else those of its own head: as parameters, and their names."""
    assert isinstance(cell.spec, InterveneSpec)
    found = choose_classes(facts, cell.spec.classes)
    if found is None:
        raise BadSpec(
            f"stages.{cell.name}: {facts.model} has no classes of its own"
            + ("; add classes: {names: [...], templates: openai80}" if facts.has_text else " and no text tower")
        )
    names = tuple(class_names(facts, found))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadSpec(
            f"stages.{cell.name}.classes: {', '.join(twice[:5])} {'is' if len(twice) == 1 else 'are'} there twice, so no label "
            "says which is meant"
        )
    return {"templates": [], **found}, names


def _find_concepts(cell: Cell, found: Described, names: Sequence[str], own_head: bool) -> list[int]:
    """The concept that is each class: the one of its name, for which units were sought. own_head: no others can be given."""
    number = {name: m for m, name in enumerate(found.concepts)}
    missing = [name for name in names if name not in number]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        some = ", ".join(found.concepts[:5]) + ", ..." * (len(number) > 5)
        other = f"they are those of {cell.model}'s own head" if own_head else "or give other classes"
        raise BadSpec(
            f"stages.{cell.name}.classes: {', '.join(missing[:5])}{more} not among the {len(number)} concepts of "
            f"{found.stage.detail} ({some}); describe units with these concepts, {other}"
        )
    return [number[name] for name in names]


# ---------------------------------------------------------------- stages


def _stages(
    cell: Cell, facts: ModelFacts, forward: Forward, found: Described, about: dict[str, JsonValue], names: Sequence[str]
) -> Iterator[StageSpec]:
    """One list of units: with the error kept and dropped if they are features; neurons have none."""
    spec = cell.spec
    assert isinstance(spec, InterveneSpec)
    tau = found.first(spec.tau, f"stages.{cell.name}.tau")
    site = _find_site(cell, facts, found)
    _check_order(cell, facts, site, about)
    inputs = {**forward.inputs, "units": found.stage.digest, "labels": forward.index}
    modes: tuple[ErrorMode, ...] = ("keep",)
    if found.units.sae:
        inputs["sae"] = found.units.sae.removeprefix("sae:")
        modes = tuple(dict.fromkeys(spec.error))
    for error in modes:
        params: dict[str, JsonValue] = {
            **forward.params,
            **about,
            "site": found.units.site,
            "at": str(site),
            "positions": site.tokens if _has_tokens(facts, site) else "all",
            "unit_kind": found.units.unit_kind,
            "method": found.method,
            "variant": found.variant.name,
            "seed": found.variant.seed,
            "concept_ids": list(_find_concepts(cell, found, names, own_head=not facts.has_text)),
            "tau": tau,
            "changes": [change.model_dump(mode="json") for change in spec.changes],
            "error": error,
            "labels_from": spec.labels_from,
            "off_class_seed": spec.off_class_seed,
        }
        yield StageSpec(
            kind="intervene", method=METHOD, subject=facts.model, output="effects", params=params, inputs=inputs
        )


def _has_tokens(facts: ModelFacts, site: Site) -> bool:
    return facts.site(site.path).layout in ("tokens", "heads")


def _find_site(cell: Cell, facts: ModelFacts, found: Described) -> Site:
    """Where the units are changed: their site, at the tokens that `positions` says, else at all or those of the SAE."""
    spec = cell.spec
    assert isinstance(spec, InterveneSpec)
    own = Site.parse(found.units.site)
    tokens = spec.positions or (own.tokens if found.units.sae else "all")
    (site,) = resolve_sites(facts, [Site(path=own.path, tokens=tokens if _has_tokens(facts, own) else None)])
    if found.units.sae is None:
        return site
    if own.reduce is not None and not isinstance(own.reduce, Sample):
        raise BadSpec(
            f"stages.{cell.name}: {found.units} are of an SAE of the {own.reduce} of tokens, so no token can be changed with "
            "it; train it on the tokens themselves"
        )
    if site.tokens != own.tokens:
        raise BadSpec(
            f"stages.{cell.name}.positions: {spec.positions}, but {found.units} are of an SAE of the tokens @{own.tokens}; "
            f"leave positions out, or give positions: {own.tokens}"
        )
    return site


def _check_order(cell: Cell, facts: ModelFacts, site: Site, about: dict[str, JsonValue]) -> None:
    order = [known.path for known in facts.sites]
    told_from = "logits" if about["classes"] == HEAD else "embedding"
    if told_from in order and order.index(site.path) > order.index(told_from):
        raise BadSpec(
            f"stages.{cell.name}: {site.path} comes after the {told_from} that classes are told from, so no change of it "
            "can matter; give units of an earlier site"
        )


# ---------------------------------------------------------------- what a plan says


def changes_of(plan: Plan) -> tuple[Change, ...]:
    """What is done to units."""
    changes: Any = plan.stage.params["changes"]
    return tuple(load_json(Change, canonical_json(change)) for change in changes)


def classes_of(plan: Plan) -> tuple[str, ...]:
    """Names of the classes, without white space around them; a class is its place here."""
    names: Any = plan.effort["classes"]
    return tuple(names)


def pass_of(stage: StageSpec) -> str:
    """Equal for stages whose units are changed in the same passes: where that is, the SAE, what becomes of its error, and all
    else that one sweep has only one of; where units were found does not matter."""
    own = ("site", "method", "variant", "seed", "tau", "concept_ids")
    about = {name: value for name, value in stage.params.items() if name not in own}
    return canonical_json([about, stage.inputs.get("sae")])


# ---------------------------------------------------------------- cost


def estimate(plan: Plan, known: Known) -> Estimate:
    """One whole pass per image, shared by the lists of units at one site, and of this list the ends of two passes for every
    change: with the units of the image's class, and of another class if any is drawn.

    The end of a pass begins at the last block before the site. The encoder of an SAE is left out: its width is not known
    before it is made. Images of no class cost less, which no plan knows.
    """
    facts = known.models.get(plan.stage.subject)
    if facts is None:
        return Estimate()
    params = plan.stage.params
    forward, site = forward_effort(plan), Site.parse(str(params["at"]))
    share, per_stage = suffix_share(facts, site.path), float(str(plan.effort["passes_per_stage"]))
    ends = len(changes_of(plan)) * (1 if params["off_class_seed"] is None else 2)
    reference = per_stage * share * (params["error"] == "drop")
    known_site, batch = facts.site(site.path), int(str(forward.effort["batch_size"]))
    classes, tau = len(classes_of(plan)), int(str(params["tau"]))
    pixels = 3 * facts.input_hw[0] * facts.input_hw[1]
    return Estimate(
        images=forward.rows,
        flops=round(forward.rows * facts.flops * (per_stage + reference + ends * share)),
        bytes=classes * len(changes_of(plan)) * (100 + 4 * tau),
        memory=8 * classes * (tau + 2 * ends + 5),
        worker_memory=LIBRARY_BYTES
        + 8 * facts.params
        + 4 * batch * (3 * pixels + _COPIES * positions_selected(known_site, site.tokens) * known_site.width),
    )


def suffix_share(facts: ModelFacts, path: str) -> float:
    """About which share of a forward comes after the last block or convolution before a site, if all cost alike."""
    order = [known.path for known in facts.sites]
    steps = [place for place, name in enumerate(order) if _STEPS.fullmatch(name)]
    reach = order.index(path) + path.startswith("resid_post")  # the output of a block is the input of the next
    passed = sum(place <= reach for place in steps)
    if order and steps and order[steps[0]].startswith("resid_pre"):
        passed -= 1  # a block begins there
    return 1 - max(0, passed) / len(steps) if steps else 1.0
