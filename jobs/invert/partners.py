"""Who guides an inversion: the members of a zoo that were compared with the generator, from the plans that are read; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jobs.activations import Forward
from jobs.protocol import Cell, ImageFacts
from miclip_core.rosetta.grids import Rule
from schemas.base import Frozen, canonical_json
from schemas.errors import BadSpec
from schemas.invert_specs import InvertSpec
from schemas.plans import Plan, load_json

Side = Literal["a", "b"]


class Partner(Frozen):
    """A member that was compared with the generator: its forward pass over the images to invert, and the mined pair.

    sae: the stage that made the SAE whose latents its units are. side: what the generator is in the tables of the pair.
    units: the stage with the generator's statistics. grid: where maps were compared. absolute: whether r counts without
    its sign, so that units that fall where the other rises are alike. map_numbers: in all maps that were compared, of one
    image. sae_numbers: in the weights of the SAE, as far as its width was known.
    """

    forward: Forward
    sae: str | None
    pair: str
    side: Side
    units: str
    grid: Rule
    absolute: bool
    map_numbers: int
    sae_numbers: int

    @property
    def other(self) -> Side:
        """What the member is in the tables of the pair."""
        return _other(self.side)

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
    found: dict[str, tuple[Plan, Side]] = {}
    models: dict[str, None] = {}
    for plan in _pairs(cell):
        a, b = _forward(plan, "a").model, _forward(plan, "b").model
        models |= {a: None, b: None}
        if a != b and spec.generator in (a, b):
            found[plan.digest] = (plan, "a" if a == spec.generator else "b")
    if not found:
        raise BadSpec(
            f"generator: {spec.generator} was compared with no other model in {', '.join(spec.reads)}, whose models are "
            f"{', '.join(models) or 'none'}; read a mine_rosetta stage whose zoo has it"
        )
    _check_k(spec, [plan for plan, _ in found.values()])
    partners = [_partner(cell, images, plan, side) for plan, side in found.values()]
    plan, side = next(iter(found.values()))
    return _over(cell, images, _forward(plan, side)), _chosen(spec, partners)


def _check_k(spec: InvertSpec, pairs: Sequence[Plan]) -> None:
    """Buddies beyond those that were mined are not there. Raises BadSpec."""
    given: Any = [plan.stage.params["k"] for plan in pairs]
    mined = max(max(both) for both in given)
    if spec.k > mined:
        raise BadSpec(
            f"k: the {spec.k} nearest, of which {', '.join(spec.reads)} mines {mined}; expected at most {mined}; give a smaller k here or "
            "a larger one there"
        )


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


def _partner(cell: Cell, images: ImageFacts, plan: Plan, side: Side) -> Partner:
    member, params = _effort(plan, _other(side)), plan.stage.params
    maps = [(site["grid"][0] * site["grid"][1], site["channels"], site["width"]) for site in member["sites"]]
    return load_json(
        Partner,
        canonical_json(
            {
                "forward": _over(cell, images, _forward(plan, _other(side))).model_dump(mode="json"),
                "sae": member["sae"],
                "pair": plan.digest,
                "side": side,
                "units": plan.stage.inputs[side],
                "grid": params["grid"],
                "absolute": params["rank_by"] == "abs_r",
                "map_numbers": sum(positions * channels for positions, channels, _ in maps),
                "sae_numbers": sum(2 * channels * width for _, channels, width in maps) if member["sae"] else 0,
            }
        ),
    )


def _other(side: Side) -> Side:
    return "b" if side == "a" else "a"


def _effort(plan: Plan, side: Side) -> dict[str, Any]:
    """The member on one side of a pair, as its plan has it."""
    found: Any = plan.effort[side]
    return found


def _forward(plan: Plan, side: Side) -> Forward:
    return load_json(Forward, canonical_json(_effort(plan, side)["forward"]))


def _over(cell: Cell, images: ImageFacts, forward: Forward) -> Forward:
    """The same pass over the images of this cell."""
    assert isinstance(cell.spec, InvertSpec) and cell.images is not None
    return forward.over(images, cell.images, cell.spec.batch_size)
