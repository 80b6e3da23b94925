"""The plan that measures an SAE, made by whoever makes SAEs, so that other classes or images never train it again; loads no torch."""

from __future__ import annotations

from pydantic import JsonValue

from jobs.predictions import choose_classes
from jobs.sae_tokens import SiteTokens, tokens_of
from jobs.tokens.order import Order
from schemas.base import canonical_json, digest
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec, load_json
from schemas.sae import StreamSettings
from schemas.sae_specs import MeasuredCell

METHOD = 1
OF_THE_SAE = ("sae", "format", "sha256")
"""Parameters that say which SAE it is, for people; not what it is measured on."""


def make_measurement(spec: MeasuredCell, facts: ModelFacts, tokens: SiteTokens, sae: StageSpec) -> Plan:
    """What an SAE does on the held-out images of a cell: a row of sae_summary.

    sae: the stage that publishes its weights. The held-out images are those that a training with the same blocks, share
    and seed leaves out, whatever its batches are.

    Raises:
        TooFewImages: they make no block to hold out and another one.
    """
    held_out = StreamSettings(
        batch_tokens=1, buffer_batches=1, block_images=spec.block_images, holdout=spec.holdout, seed=spec.order_seed
    )
    Order(tokens.forward.rows, held_out)
    shared: dict[str, JsonValue] = {
        "stream": held_out.model_dump(mode="json"),
        "site": tokens.site,
        "round_to": tokens.round_to,
        "rows": tokens.forward.rows,
        "evaluate_images": spec.evaluate_images,
        **_classes(spec, facts),
    }
    own: dict[str, JsonValue] = {name: sae.params[name] for name in OF_THE_SAE if name in sae.params}
    inputs = {"sae": sae.digest, "activations": tokens.stage.digest}
    if shared["classes"] is not None:
        inputs["labels"] = tokens.forward.index  # another label is another loss
    return Plan(
        stage=StageSpec(
            kind="measure_sae",
            method=METHOD,
            subject=facts.model,
            output="summary",
            params={**shared, **own},
            inputs=inputs,
        ),
        rounds=(Round(name="measure", rows=1, shard_rows=1),),
        # SAEs of all sites share the model; the original forward pass is shared by those of one
        worker=f"measure_sae {facts.model} {digest([tokens.forward.inputs, tokens.forward.params])}",
        effort={"forward": tokens.forward.model_dump(mode="json"), "source": tokens.source},
    )


def _classes(spec: MeasuredCell, facts: ModelFacts) -> dict[str, JsonValue]:
    """The classes whose loss is measured, or none; and the column that says the class of an image."""
    found = choose_classes(facts, spec.classes)
    return {"classes": None} if found is None else {**found, "labels_from": spec.labels_from}


def held_out_of(plan: Plan) -> StreamSettings:
    """Which images are held out."""
    return load_json(StreamSettings, canonical_json(plan.stage.params["stream"]))


def count_held_out(plan: Plan) -> int:
    """About how many images are measured."""
    held_out = round(tokens_of(plan).forward.rows * held_out_of(plan).holdout)
    return min(held_out, int(plan.stage.params["evaluate_images"]))  # type: ignore[arg-type]
