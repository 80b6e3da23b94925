"""Invert cells to plans: one stage that inverts, or one per edit; loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue

from jobs.activations import Forward, forward_effort
from jobs.invert.partners import Partner, find_partners
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, ImageFacts, Known
from miclip_core.generate.location import parse_generated
from schemas.base import canonical_json, digest
from schemas.errors import BadSpec, NotInspected, TooFewImages, UnknownSite
from schemas.inversion import OF_CHOSEN, Edit, InversionSettings
from schemas.invert_specs import EditOrNone, InvertSpec, begins_at_latent
from schemas.models import ModelFacts, resolve_sites
from schemas.plans import Plan, Round, StageSpec, load_json
from schemas.refs import ImageSetRef, Site

METHOD = 1
SEEK = "seek"
TABLES: dict[str, dict[str, tuple[str, ...]]] = {"inversions": {SEEK: ("rosetta_inversions", "bad_inputs")}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"inversions": ()}
_BACKWARD = 3
"""A step with its gradient costs so many draws."""
_GRAPH = 8
"""Numbers that such a step holds for each number of all maps of a sample; 7.2 as measured with the demo generator."""
_COPIES = 3
"""Maps are there so often while they are read, standardised and compared."""
_CURVES = 3 * 4
"""Bytes of one step in a row: three curves of float32."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The plans of one generator over one image set: an inversion, edits, or both.

    Raises:
        NotInspected: a model or the image set is not known yet.
        BadSpec: the generator was compared with no model that is asked for, is none, or lacks a unit that is chosen; or an
            edit of images that it did not draw has no inversion to begin at.
        TooFewImages: no image of the set can be used.
    """
    spec = cell.spec
    assert isinstance(spec, InvertSpec) and cell.images is not None
    images = known.images.get(cell.images.key)
    if images is None:
        raise NotInspected(f"{cell.images.ref} is not indexed yet")
    if not images.usable:
        raise TooFewImages(f"images: none of the {images.rows} of {cell.images.ref} can be used; give others")
    forward, partners = find_partners(cell, images)
    facts = _generator(known, spec)
    if missing := [p.forward.model for p in partners if p.forward.model not in known.models]:
        raise NotInspected(f"{missing[0]} is not inspected yet")
    chosen = _chosen_units(spec, facts)
    effort: dict[str, JsonValue] = {
        "forward": forward.model_dump(mode="json"),
        "partners": [partner.model_dump(mode="json") for partner in partners],
        "samples_at_once": spec.samples_at_once,
    }
    rounds = (Round(name=SEEK, rows=forward.rows, shard_rows=spec.shard_rows),)
    stages = [_stage(cell, images, forward, partners, chosen, edit) for edit in dict.fromkeys(spec.edit)]
    worker = f"invert {spec.generator} {digest([stage.inputs for stage in stages])}"
    return tuple(Plan(stage=stage, rounds=rounds, worker=worker, effort=effort) for stage in stages)


def _generator(known: Known, spec: InvertSpec) -> ModelFacts:
    facts = known.models.get(spec.generator)
    if facts is None:
        raise NotInspected(f"{spec.generator} is not inspected yet")
    if facts.family != "generator":
        raise BadSpec(
            f"generator: {spec.generator} (family {facts.family}) reads images and draws none; give one that draws"
        )
    return facts


def _chosen_units(spec: InvertSpec, facts: ModelFacts) -> list[JsonValue]:
    """The units of `remove` and `strengthen` by canonical site."""
    found: list[JsonValue] = []
    for unit in spec.chosen:
        try:
            (site,) = resolve_sites(facts, [Site.parse(unit.site)])
        except (UnknownSite, ValueError) as error:
            raise BadSpec(f"chosen: {unit.site} is not one site of {facts.model}: {error}") from None
        if unit.unit >= (width := facts.site(site.path).width):
            raise BadSpec(f"chosen: unit {unit.unit} of {site}, which has {width}; expected 0 to {width - 1}")
        found.append([str(site), unit.unit])
    return found


def _stage(
    cell: Cell,
    images: ImageFacts,
    forward: Forward,
    partners: Sequence[Partner],
    chosen: list[JsonValue],
    name: EditOrNone,
) -> StageSpec:
    spec = cell.spec
    assert isinstance(spec, InvertSpec)
    edit = spec.edit_of(name)
    random_starts = spec.starts_of(name) - int(begins_at_latent(name))
    inputs = {**forward.inputs, **{f"pair.{i}": partner.pair for i, partner in enumerate(partners)}}
    about: dict[str, JsonValue] = {}
    if edit is not None:
        inputs["units"] = partners[0].units
        about["edit"] = edit.model_dump(mode="json")
        if not _drew(cell, spec):
            inputs["inversion"] = _inversion(cell, spec, images)
    if name in OF_CHOSEN:
        about["chosen"] = chosen
    return StageSpec(
        kind="invert",
        method=METHOD,
        subject=spec.generator,
        output="inversions",
        params={
            **forward.params,
            **about,
            "variant": "inversion" if edit is None else str(edit),
            "pairs": spec.pairs,
            "k": spec.k,
            "units": list(spec.units),
            "settings": spec.settings(name).model_dump(mode="json"),
            "space": spec.space,
            "starts": spec.starts_of(name),
            "seed": spec.seed if random_starts else None,
        },
        inputs=inputs,
    )


def _drew(cell: Cell, spec: InvertSpec) -> bool:
    """Whether this generator drew the images, whose latents are then known."""
    assert cell.images is not None
    ref = ImageSetRef.parse(cell.images.ref)
    return ref.source == "generated" and str(parse_generated(ref).model) == spec.generator


def _inversion(cell: Cell, spec: InvertSpec, images: ImageFacts) -> str:
    """The one inversion of the same images by the same generator among what is read."""
    read = {p.digest: p for plans in cell.reads.values() for p in plans if p.stage.kind == "invert"}
    found = [
        digest
        for digest, plan in read.items()
        if plan.stage.subject == spec.generator
        and "edit" not in plan.stage.params
        and plan.stage.inputs["images"] == images.content
    ]
    if len(found) != 1:
        raise BadSpec(
            f"edit: {spec.generator} did not draw these images, so their latents must be found first; found {len(found)} "
            "inversions of them among what is read; expected one: read an invert stage with edit: none"
        )
    return found[0]


# ---------------------------------------------------------------- plans read back


def settings_of(plan: Plan) -> InversionSettings:
    """How latents are sought."""
    return load_json(InversionSettings, canonical_json(plan.stage.params["settings"]))


def edit_of(plan: Plan) -> Edit | None:
    """The edit that a plan makes; None if it inverts."""
    params = plan.stage.params
    return load_json(Edit, canonical_json(params["edit"])) if "edit" in params else None


def partners_of(plan: Plan) -> tuple[Partner, ...]:
    """The members that guide."""
    found: Any = plan.effort["partners"]
    return tuple(load_json(Partner, canonical_json(partner)) for partner in found)


def begins_at_latents(plan: Plan) -> bool:
    """Whether the first start of an image is its latent, not a random one."""
    edit = edit_of(plan)
    return edit is not None and begins_at_latent(edit.name)


# ---------------------------------------------------------------- costs


def estimate(plan: Plan, known: Known) -> Estimate:
    """Steps with gradients of every start, one pass of the models that guide, and rows with curves and pictures."""
    facts = known.models.get(plan.stage.subject)
    if facts is None:
        return Estimate()
    params: Any = plan.stage.params
    rows, samples = forward_effort(plan).rows, forward_effort(plan).rows * params["starts"]
    steps = params["settings"]["steps"]
    guides = [known.models[p.forward.model] for p in partners_of(plan)] if edit_of(plan) is None else []
    once = int(str(plan.effort["samples_at_once"]))
    drawn = 3 * once * sum(site.width * site.positions for site in facts.sites)
    return Estimate(
        images=rows,
        flops=samples * steps * _BACKWARD * facts.flops + rows * sum(guide.flops for guide in guides),
        bytes=samples * (_CURVES * (steps + 1) + 3 * facts.input_hw[0] * facts.input_hw[1]),
        worker_memory=LIBRARY_BYTES
        + 8 * (facts.params + sum(guide.params for guide in guides))
        + 4 * (drawn + _guides_numbers(plan, known) + _wanted_numbers(plan, known)),
        note=f"{samples} samples of {steps} steps",
    )


def _guides_numbers(plan: Plan, known: Known) -> int:
    """Of the members that guide: the weights of their SAEs, and the maps of one batch of the largest."""
    if edit_of(plan) is not None:
        return 0
    partners = partners_of(plan)
    batches = (int(str(p.forward.effort["batch_size"])) * p.map_numbers for p in partners)
    return sum(p.sae_numbers for p in partners) + _COPIES * max(batches)


def _wanted_numbers(plan: Plan, known: Known) -> int:
    """Of the maps that are wanted, on the largest grid: of the images of a shard, and beside those that are drawn."""
    params: Any = plan.stage.params
    models = [known.models[plan.stage.subject], *(known.models[p.forward.model] for p in partners_of(plan))]
    positions = max(site.positions for facts in models for site in facts.sites)
    own = sum(site.width for site in models[0].sites)
    pairs = min(params["pairs"] or math.inf, own * params["k"] * len(partners_of(plan)))
    return int(pairs * positions * (2 * plan.rounds[0].shard_rows + _COPIES * int(str(plan.effort["samples_at_once"]))))
