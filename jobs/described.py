"""Describe stages as those see them who read them: whose units, by which method, and their published lists; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from jobs.protocol import Cell, Inputs
from schemas.errors import BadSpec
from schemas.plans import Plan, StageSpec

Direction = Literal["describe", "localise"]


class Units(NamedTuple):
    """The units of one site, or the latents of one SAE there: what methods can be compared on."""

    site: str
    unit_kind: str
    sae: str | None
    """`sae:<stage>` of features; None for neurons."""

    def __str__(self) -> str:
        return f"{self.unit_kind} of {self.sae} at {self.site}" if self.sae else f"{self.unit_kind} at {self.site}"

    @property
    def key(self) -> tuple[str, str, str]:
        """Sorts them, also where there is no SAE."""
        return self.site, self.unit_kind, self.sae or ""


class Variant(NamedTuple):
    """A method, its name with what sets it apart, the same for all seeds, and the seed of its neuron encoder if it has one."""

    method: str
    """miclip, act_values, auroc, clip_dissect, netdissect or v_interp."""
    name: str
    seed: int | None

    @property
    def key(self) -> tuple[str, int]:
        """Sorts them, also where there is no seed."""
        return self.name, -1 if self.seed is None else self.seed


@dataclass(frozen=True)
class Described:
    """One method on some units: a stage whose table `unit_concepts` has lists of `tau`; concept m is concepts[m]."""

    stage: StageSpec
    units: Units
    variant: Variant
    concepts: tuple[str, ...]
    tau: int

    @property
    def method(self) -> str:
        """miclip, act_values, auroc, clip_dissect, netdissect or v_interp."""
        return self.variant.method

    def first(self, tau: int | None, where: str) -> int:
        """How many units of each list `tau` asks for; None is all that there are. Raises BadSpec: fewer are there."""
        if tau is not None and tau > self.tau:
            raise BadSpec(
                f"{where}: {tau} units of a concept, but lists of {self.stage.detail} have {self.tau}; describe with a larger tau"
            )
        return self.tau if tau is None else tau


def units_of(stage: StageSpec) -> Units:
    """The units that a stage with params `site` and `unit_kind`, and an SAE among its inputs if they are features, is about."""
    features = stage.params["unit_kind"] == "features"
    return Units(
        str(stage.params["site"]), str(stage.params["unit_kind"]), f"sae:{stage.inputs['sae']}" if features else None
    )


def variant_of(stage: StageSpec) -> Variant:
    """The params `method`, `variant` and `seed` of a stage; the method of a describe stage is its output."""
    params: Any = stage.params
    method = stage.output if stage.kind == "describe" else params["method"]
    return Variant(method, params["variant"], params.get("seed"))


def about(stage: StageSpec) -> dict[str, str | int | None]:
    """What the rows of a stage say of it: itself, its model, its variant, and whose units those of one site are."""
    variant = variant_of(stage)
    of_units = units_of(stage)._asdict() if "site" in stage.params else {}
    of_variant = {"method": variant.method, "variant": variant.name, "seed": variant.seed}
    return {"stage": stage.digest, "model": stage.subject, **of_units, **of_variant}


def find_described(cell: Cell) -> tuple[Described, ...]:
    """Every describe stage that a cell reads, each once; in an order of their own, whatever is read first."""
    read = {plan.digest: plan for plans in cell.reads.values() for plan in plans if plan.stage.kind == "describe"}
    found = [_described(plan) for plan in read.values()]
    return tuple(sorted(found, key=lambda some: (some.units.key, some.variant.key, some.stage.digest)))


def _described(plan: Plan) -> Described:
    params: Any = plan.stage.params
    concepts = tuple(str(name) for name in params["concepts"])
    return Described(plan.stage, units_of(plan.stage), variant_of(plan.stage), concepts, int(params["tau"]))


@dataclass(frozen=True, eq=False)
class Lists:
    """The first places of all lists of one direction, one entry per unit, concept and rank: sorted by list, then rank.

    units, concepts, ranks int64 [n]; scores float32 [n]. The list is the unit's if units are described, else the concept's.
    """

    units: np.ndarray
    concepts: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray


def read_lists(inputs: Inputs, stage: str, direction: Direction, first: int) -> Lists:
    """The `first` places of every list of a stage's `unit_concepts`."""
    columns = ("direction", "unit", "concept_id", "rank", "score")
    parts: list[list[np.ndarray]] = [[] for _ in columns[1:]]
    for batch in inputs.table(stage, "unit_concepts", columns):
        wanted = (batch["direction"].to_numpy(zero_copy_only=False) == direction) & (batch["rank"].to_numpy() < first)
        for found, name in zip(parts, columns[1:], strict=True):
            found.append(batch[name].to_numpy()[wanted])
    units, concepts, ranks = (
        np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64) for found in parts[:3]
    )
    scores = np.concatenate(parts[3]).astype(np.float32) if parts[3] else np.empty(0, np.float32)
    order = np.lexsort((ranks, units if direction == "describe" else concepts))
    return Lists(units[order], concepts[order], ranks[order], scores[order])
