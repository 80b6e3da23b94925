"""Which images are traced: those of the extract stages that are read, else those that the encoders were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.activations import Forward
from jobs.predictions import class_names, find_predictions
from jobs.protocol import Cell
from jobs.sae_tokens import SiteTokens, find_stored, planned_tokens
from jobs.trace_errors.layers import Trace
from schemas.errors import BadSpec
from schemas.models import ModelFacts


@dataclass(frozen=True)
class Traced:
    """The activations of each layer by its number, ascending, and the stage of predictions over the same images."""

    tokens: dict[int, SiteTokens]
    predictions: str

    @property
    def forward(self) -> Forward:
        """The forward pass over these images."""
        return next(iter(self.tokens.values())).forward


def find_traced(cell: Cell, facts: ModelFacts, trace: Trace, classes: Sequence[str]) -> Traced:
    """What a trace is about. classes: those that its encoders were trained towards.

    Raises:
        BadSpec: the extract stages that are read lack a layer or predictions of these classes, or have several.
    """
    if not any(plans and all(plan.stage.kind == "extract" for plan in plans) for plans in cell.reads.values()):
        plans = {layer.number: layer.encoder.plan for layer in trace}
        predictions = trace[0].encoder.plan.stage.inputs["predictions"]
        return Traced({number: planned_tokens(plan) for number, plan in plans.items()}, predictions)
    where = f"stages.{cell.name}.reads"
    stored = find_stored(cell, facts, ())
    tokens = {layer.number: _of_site(where, facts, stored, layer.encoder.site) for layer in trace}
    predictions_stage = find_predictions(cell)
    sets = {(t.forward.inputs["images"], t.forward.rows) for t in tokens.values()}
    sets.add((predictions_stage.inputs["images"], int(str(predictions_stage.params["rows"]))))
    if len(sets) > 1:
        raise BadSpec(
            f"{where}: layers and predictions of {facts.model} are of {len(sets)} sets of images; read those of one"
        )
    names = class_names(facts, predictions_stage.params)
    if names != list(classes):
        raise BadSpec(
            f"{where}: encoders were trained towards {len(classes)} classes ({', '.join(classes[:3])}, ...), but predictions "
            f"that are read are of {len(names)} ({', '.join(names[:3])}, ...); give both the same classes"
        )
    return Traced(tokens, predictions_stage.digest)


def _of_site(where: str, facts: ModelFacts, stored: Sequence[SiteTokens], site: str) -> SiteTokens:
    found = {tokens.stage.digest: tokens for tokens in stored if tokens.site == site}
    if len(found) != 1:
        raise BadSpec(
            f"{where}: found {len(found)} stages of activations of {facts.model} at {site}, where an encoder is; expected "
            "one: extract the sites of all layers over the images to be traced, and read no other extract stage"
        )
    return next(iter(found.values()))
