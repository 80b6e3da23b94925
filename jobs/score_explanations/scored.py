"""Which texts are scored on the top images of which sae_features stage, decided at planning; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.activations import Forward, forward_effort
from jobs.explained import Explained, find_explained
from jobs.protocol import Cell
from schemas.errors import BadSpec
from schemas.plans import Plan


@dataclass(frozen=True)
class Scored:
    """One SAE: all ways in which its features are explained, and what says where they are active on other images.

    name: of the pipeline's stage that this sae_features plan is of.
    """

    name: str
    features: Plan
    explained: tuple[Explained, ...]

    @property
    def params(self) -> Any:
        """Of the sae_features stage: tables, top_k, grid, whole_view, round_to ..."""
        return self.features.stage.params

    @property
    def sae(self) -> str:
        """The stage of the SAE."""
        return self.features.stage.inputs["sae"]

    @property
    def site(self) -> str:
        """Where its features are, all tokens of them."""
        return str(self.params["site"])

    @property
    def index(self) -> str:
        """The images to score on."""
        return self.forward.index

    @property
    def forward(self) -> Forward:
        """The model over these images."""
        return forward_effort(self.features)


def find_scored(cell: Cell) -> tuple[Scored, ...]:
    """Every SAE whose features are explained, with the sae_features stage over other images; in an order of their own.

    Raises:
        BadSpec: there are no texts, not one sae_features stage per SAE, its images are those that explanations were made
            from, or one way to explain is there twice.
    """
    explained = find_explained(cell)
    if not explained:
        raise _refuse(cell, f"no texts about features of {cell.model}; expected an explain stage")
    found = []
    for sae in dict.fromkeys(one.sae for one in explained):
        of_sae = tuple(one for one in explained if one.sae == sae)
        _check_once(cell, of_sae)
        found.append(_scored(cell, sae, of_sae))
    return tuple(found)


def _refuse(cell: Cell, what: str) -> BadSpec:
    return BadSpec(f"stages.{cell.name}.reads: {what}")


def _check_once(cell: Cell, explained: tuple[Explained, ...]) -> None:
    seen: dict[Any, Explained] = {}
    for one in explained:
        other = seen.setdefault(one.variant, one)
        if other is not one:
            a, b = ({**e.stage.params, **e.stage.inputs} for e in (other, one))
            differ = sorted(name for name in {*a, *b} if a.get(name) != b.get(name))
            raise _refuse(
                cell,
                f"{one.variant} explains the features of sae:{one.sae} twice, with different {', '.join(differ)} (stages "
                f"{other.digest} and {one.digest}); give each its own score_explanations stage",
            )


def _scored(cell: Cell, sae: str, explained: tuple[Explained, ...]) -> Scored:
    there = {
        plan.digest: (name, plan)
        for name, plans in cell.reads.items()
        for plan in plans
        if plan.stage.output == "features" and plan.stage.inputs["sae"] == sae
    }
    if len(there) != 1:
        raise _refuse(
            cell,
            f"found {len(there)} sae_features stages of sae:{sae}, whose features are explained; expected one, over images "
            "that no explanation was made from",
        )
    ((name, plan),) = there.values()
    scored = Scored(name, plan, explained)
    for one in explained:
        if one.index == scored.index:
            raise _refuse(
                cell,
                f"{name} is over the very images from which {one.variant} was made; give it images of its own, such as "
                "those of another split",
            )
    return scored
