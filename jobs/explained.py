"""Explain stages as those see them who read them: whose features, by which method and model, and their texts; loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobs.activations import forward_effort
from jobs.protocol import Cell, Inputs
from schemas.explain_specs import SEES_IMAGES
from schemas.plans import Plan, StageSpec

Row = dict[str, Any]
OWN_DIRECTION = "sae"
"""Texts that another direction made are controls."""


class Variant(NamedTuple):
    """One way to explain features: the columns of that name of every table of explanations."""

    vlm: str
    """Full ref of the vision-language model."""
    method: str
    masking: str
    direction: str
    positions: str
    alpha_asked: str
    alpha_unit: str

    @property
    def sees_images(self) -> bool:
        """Whether it shows the top images of a feature."""
        return self.method in SEES_IMAGES

    def __str__(self) -> str:
        """What sets it apart, for people."""
        words = [self.method, self.masking, self.direction, self.positions]
        if self.method != "topk":
            words.append(f"alpha {self.alpha_asked} x {self.alpha_unit}")
        return " ".join(word for word in words if word != "none")


class Wanted(NamedTuple):
    """Which latents a stage explains: the sae_features stage that describes them, their numbers, all that are active if
    none, and how many of them at most."""

    stage: str
    numbers: tuple[int, ...]
    most: int | None


@dataclass(frozen=True)
class Explained:
    """A stage whose table `explanations` has the texts of one variant about the features of one SAE."""

    plan: Plan
    variant: Variant

    @property
    def stage(self) -> StageSpec:
        """What it is called by."""
        return self.plan.stage

    @property
    def digest(self) -> str:
        """Of the stage."""
        return self.plan.digest

    @property
    def site(self) -> str:
        """Where the SAE was trained."""
        return str(self.stage.params["site"])

    @property
    def sae(self) -> str:
        """The stage of the SAE."""
        return self.stage.inputs["sae"]

    @property
    def wanted(self) -> Wanted:
        """The latents that it has rows of."""
        params: Any = self.stage.params
        return Wanted(self.stage.inputs["features"], tuple(params["features"]), params["most"])

    @property
    def index(self) -> str:
        """The image set that it was made from."""
        return self.stage.inputs["index"]

    @property
    def rows(self) -> int:
        """Rows of that index that were read."""
        return forward_effort(self.plan).rows


def variant_of(stage: StageSpec) -> Variant:
    """The params of a stage that has all of those names."""
    return Variant(*(str(stage.params[name]) for name in Variant._fields))


def find_explained(cell: Cell) -> tuple[Explained, ...]:
    """Every stage of explanations that a cell reads, each once; in an order of their own, whatever is read first."""
    read = {
        plan.digest: plan
        for plans in cell.reads.values()
        for plan in plans
        if plan.stage.kind == "explain" and plan.stage.output == "explanations"
    }
    found = [Explained(plan, variant_of(plan.stage)) for plan in read.values()]
    return tuple(sorted(found, key=lambda one: (one.site, one.sae, one.variant, one.digest)))


def about(stage: StageSpec) -> Row:
    """What all rows of a stage about one SAE say of it: itself, its model, the site and the SAE."""
    return {
        "stage": stage.digest,
        "model": stage.subject,
        "site": str(stage.params["site"]),
        "sae": f"sae:{stage.inputs['sae']}",
    }


def read_rows(
    inputs: Inputs,
    stage: str,
    table: str,
    columns: Sequence[str] | None = None,
    features: Sequence[tuple[int, int]] | None = None,
) -> Iterator[Row]:
    """Rows of a table about features; `features` are disjoint ranges [start, stop) of those that are wanted."""
    between = None if features is None else ("feature", features)
    for batch in inputs.table(stage, table, columns, between):
        yield from batch.to_pylist()
