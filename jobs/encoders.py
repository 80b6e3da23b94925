"""Neuron encoders as stages: what their plans say, those that a cell reads, and what tells these apart; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.protocol import Cell
from schemas.align import AlignSettings
from schemas.align_specs import loss_name
from schemas.base import canonical_json
from schemas.plans import Plan, load_json

WEIGHTS = "encoder.safetensors"
"""The artifact of every stage whose output is `encoder`."""


def settings_of(plan: Plan) -> AlignSettings:
    """How an encoder is trained."""
    return load_json(AlignSettings, canonical_json(plan.stage.params["align"]))


@dataclass(frozen=True)
class Encoder:
    """The plan of a neuron encoder that is read, and its variant: the same for all seeds and sites."""

    plan: Plan
    variant: str

    @property
    def seed(self) -> int:
        """Of its first weights and the order of its images."""
        return settings_of(self.plan).seed

    @property
    def site(self) -> str:
        """The canonical site whose activations it maps."""
        return str(self.plan.stage.params["site"])


def find_encoders(cell: Cell) -> tuple[Encoder, ...]:
    """Every neuron encoder of the align stages that a cell reads, each once."""
    found: dict[str, Encoder] = {}
    for plans in cell.reads.values():
        encoders = [plan for plan in plans if plan.stage.output == "encoder"]
        stage = [settings_of(plan) for plan in encoders]
        for plan in encoders:
            found.setdefault(plan.digest, Encoder(plan, _variant(plan, stage)))
    return tuple(found.values())


def _variant(plan: Plan, stage: Sequence[AlignSettings]) -> str:
    """`miclip in+out`, and the scale of cosines and the rate where the align stage sweeps them."""
    settings = settings_of(plan)
    words = ["miclip", loss_name(settings.w_out, settings.w_in)]
    if len({other.logit_scale for other in stage}) > 1:
        scale = settings.logit_scale
        words.append(f"scale={scale if isinstance(scale, str) else format(scale, 'g')}")
    if len({other.lr for other in stage}) > 1:
        words.append(f"lr={settings.lr:g}")
    return " ".join(words)
