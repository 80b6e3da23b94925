"""Train_sae cells to plans: one stage per SAE and site, those of one stream of tokens side by side in one worker."""

from __future__ import annotations

from pydantic import JsonValue

from jobs.activations import get_facts
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, Known
from jobs.sae_files import WEIGHTS
from jobs.sae_measurement import make_measurement
from jobs.sae_tokens import SiteTokens, find_tokens, tokens_of
from schemas.base import canonical_json, digest
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec, load_json
from schemas.sae import SaeSettings, StreamSettings, training_bytes
from schemas.sae_specs import TrainSaeSpec

METHOD = 1
TABLES = {"sae": {"train": ("sae_metrics",)}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"sae": (WEIGHTS,)}
ROUNDS = (Round(name="train", rows=1, shard_rows=1),)
SPARSE = ("topk", "batchtopk", "matryoshka")
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
WINDOWS = 4
"""Windows in memory: the one that is used, the one that is read meanwhile, and what both are made of."""
TABLE_BYTES = 256 << 20
"""What reading stored rows takes on top: row groups as they are and decoded."""
METRICS_BYTES = 32
"""Of one step in the table, after compression."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The plans of one model: every SAE of the sweep at every site, and the measurement of each.

    Raises:
        NotInspected: the model or the image set is not known yet.
        BadSpec, UnknownSite: the spec asks for tokens that are not there.
    """
    spec = cell.spec
    assert isinstance(spec, TrainSaeSpec)
    facts = get_facts(cell, known)
    plans: list[Plan] = []
    for tokens in find_tokens(cell, known):
        trained = [_plan(spec, facts, tokens, sae) for sae in spec.saes()]
        plans += [*trained, *(make_measurement(spec, facts, tokens, plan.stage) for plan in trained)]
    return tuple(plans)


def _plan(spec: TrainSaeSpec, facts: ModelFacts, tokens: SiteTokens, sae: SaeSettings) -> Plan:
    shared: dict[str, JsonValue] = {
        "stream": spec.stream.model_dump(mode="json"),
        "site": tokens.site,
        "round_to": tokens.round_to,
        "rows": tokens.forward.rows,
    }
    params: dict[str, JsonValue] = {
        **shared,
        "sae": sae.model_dump(mode="json"),
        "data_parallel": spec.data_parallel,
    }
    stage = StageSpec(
        kind="train_sae",
        method=METHOD,
        subject=facts.model,
        output="sae",
        params=params,
        inputs={"activations": tokens.stage.digest},
    )
    # live sites share a forward pass, stored ones have nothing in common
    alike = shared if tokens.stored else {name: value for name, value in shared.items() if name != "site"}
    return Plan(
        stage=stage,
        rounds=ROUNDS,
        worker=f"train_sae {facts.model} {digest([alike, spec.data_parallel, tokens.forward.inputs])}",
        effort={
            "forward": tokens.forward.model_dump(mode="json"),
            "source": tokens.source,
            "keep_every": spec.keep_every,
            "feeders": spec.feeders,
            "width": tokens.width(facts),
        },
        gang=spec.data_parallel + spec.feeders,
    )


def settings_of(plan: Plan) -> SaeSettings:
    """The SAE that a plan trains."""
    return load_json(SaeSettings, canonical_json(plan.stage.params["sae"]))


def stream_of(plan: Plan) -> StreamSettings:
    """The order of tokens of a plan."""
    return load_json(StreamSettings, canonical_json(plan.stage.params["stream"]))


def estimate(plan: Plan, known: Known) -> Estimate:
    """Images per epoch, FLOPs of the training and of the forwards that feed it, bytes of weights and curves, memory."""
    facts = known.models.get(plan.stage.subject)
    if facts is None:
        return Estimate()
    tokens, sae, stream = tokens_of(plan), settings_of(plan), stream_of(plan)
    d, seen = tokens.width(facts), sae.steps * stream.batch_tokens
    window = WINDOWS * BYTES[tokens.round_to] * d * stream.buffer_batches * stream.batch_tokens
    forwards = 0 if tokens.stored else seen * facts.flops // tokens.per_image(facts)
    training = training_bytes(sae, d, -(-stream.batch_tokens // int(plan.stage.params["data_parallel"])))  # type: ignore[arg-type]
    return Estimate(
        images=tokens.forward.rows,
        flops=seen * _flops_per_token(sae, d),
        shared_flops=forwards,
        bytes=4 * (2 * sae.latents * d + 2 * sae.latents + d) + METRICS_BYTES * sae.steps,
        memory=training,
        worker_memory=LIBRARY_BYTES + window + (TABLE_BYTES if tokens.stored else 8 * facts.params),
    )


def _flops_per_token(sae: SaeSettings, d: int) -> int:
    """Encoder, decoder and their gradients; those kinds that keep k latents look at all of them in the encoder alone."""
    dense = 2 * d * sae.latents
    return dense + 10 * d * sae.k if sae.arch in SPARSE and sae.k else 6 * dense
