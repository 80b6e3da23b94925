"""Who guides an inversion: the members of a zoo that were compared with the generator, from the plans that are read; loads no torch."""

from __future__ import annotations

from typing import Any, Literal

from jobs.activations import Forward
from jobs.protocol import Cell, ImageFacts
from schemas.base import Frozen, canonical_json
from schemas.errors import BadSpec
from schemas.invert_specs import InvertSpec
from schemas.plans import Plan, load_json


class Partner(Frozen):
    """A member that was compared with the generator: its forward pass over the images to invert, and the mined pair.

    sae: the stage that made the SAE whose latents its units are. side: what the generator is in the tables of the pair.
    units: the stage with the generator's statistics. grid: where maps were compared. signed: whether units that fall
    where the other rises count as alike.
    """

    forward: Forward
    sae: str | None
    pair: str
    side: Literal["a", "b"]
    units: str
    grid: Literal["pairwise_max"] | tuple[int, int]
    signed: bool

    @property
    def other(self) -> Literal["a", "b"]:
        """What the member is in the tables of the pair."""
        return "b" if self.side == "a" else "a"

    @property
    def name(self) -> str:
        """For people: the model, and the SAE if its latents are meant."""
        return self.forward.model if self.sae is None else f"{self.forward.model} sae:{self.sae[:8]}"


def find_partners(cell: Cell, images: ImageFacts) -> tuple[Forward, tuple[Partner, ...]]:
    """The generator's view of the images, and every member that may guide, in the order of the zoo.

    Raises:
        BadSpec: nothing that is read compared the generator with anyone, or not with a model that is asked for.
    """
    spec = cell.spec
    assert isinstance(spec, InvertSpec)
    found: dict[str, tuple[Plan, Literal["a", "b"]]] = {}
    models: dict[str, None] = {}
    for plan in _pairs(cell):
        of = {side: _forward(plan, side).model for side in ("a", "b")}
        models |= dict.fromkeys(of.values())
        if of["a"] != of["b"] and spec.generator in of.values():
            found[plan.digest] = (plan, "a" if of["a"] == spec.generator else "b")
    if not found:
        raise BadSpec(
            f"generator: {spec.generator} was compared with no other model in {', '.join(spec.reads)}, whose models are "
            f"{', '.join(models) or 'none'}; read a mine_rosetta stage whose zoo has it"
        )
    partners = [_partner(cell, images, plan, side) for plan, side in found.values()]
    plan, side = next(iter(found.values()))
    return _over(cell, images, _forward(plan, side)), _chosen(spec, partners)


def _pairs(cell: Cell) -> list[Plan]:
    plans = {plan.digest: plan for plans in cell.reads.values() for plan in plans if plan.stage.kind == "mine_rosetta"}
    return [plan for plan in plans.values() if plan.stage.output == "pair"]


def _chosen(spec: InvertSpec, partners: list[Partner]) -> tuple[Partner, ...]:
    there = list(dict.fromkeys(partner.forward.model for partner in partners))
    if strange := [model for model in spec.members if model not in there]:
        raise BadSpec(f"members: {strange[0]} was not compared with {spec.generator}; there are {', '.join(there)}")
    kept = [p for p in partners if not spec.members or p.forward.model in spec.members]
    of_kind = [p for p in kept if ("neurons" if p.sae is None else "features") in spec.units]
    if not of_kind:
        raise BadSpec(
            f"units: no {' or '.join(spec.units)} of {', '.join(spec.members or there)} were compared with {spec.generator}; "
            f"there are {', '.join(p.name for p in kept)}"
        )
    seen: dict[tuple[str, str | None], Partner] = {}
    for partner in of_kind:
        if (key := (partner.forward.model, partner.sae)) in seen:
            raise BadSpec(
                f"reads: {partner.name} was compared with {spec.generator} twice, in stages {seen[key].pair[:8]} and "
                f"{partner.pair[:8]}; read one mine_rosetta stage"
            )
        seen[key] = partner
    return tuple(of_kind)


def _partner(cell: Cell, images: ImageFacts, plan: Plan, side: Literal["a", "b"]) -> Partner:
    other: Literal["a", "b"] = "b" if side == "a" else "a"
    params: Any = plan.stage.params
    grid = params["grid"]
    return Partner(
        forward=_over(cell, images, _forward(plan, other)),
        sae=_effort(plan, other)["sae"],
        pair=plan.digest,
        side=side,
        units=plan.stage.inputs[side],
        grid="pairwise_max" if isinstance(grid, str) else (int(grid[0]), int(grid[1])),
        signed=params["rank_by"] == "abs_r",
    )


def _effort(plan: Plan, side: str) -> dict[str, Any]:
    found: Any = plan.effort[side]
    return found


def _forward(plan: Plan, side: str) -> Forward:
    return load_json(Forward, canonical_json(_effort(plan, side)["forward"]))


def _over(cell: Cell, images: ImageFacts, forward: Forward) -> Forward:
    """The same model, precision and view over the images of this cell."""
    spec = cell.spec
    assert isinstance(spec, InvertSpec) and cell.images is not None
    return Forward(
        model=forward.model,
        inputs={**forward.inputs, "images": images.content},
        params={
            **forward.params,
            "rows": min(images.rows, cell.images.limit or images.rows),
            "orientation": cell.images.orientation,
        },
        effort={**forward.effort, "index": images.stage, "batch_size": spec.batch_size},
    )
