"""Import_sae cells to plans: one stage per foreign SAE, named by the content of its files and not by where they are."""

from __future__ import annotations

from pydantic import JsonValue

from jobs.activations import get_facts
from jobs.protocol import Cell, Estimate, Known
from jobs.sae_files import WEIGHTS
from jobs.sae_tokens import SiteTokens, find_tokens, measured_inputs, measured_params, tokens_of
from schemas.base import canonical_json, digest
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec, load_json
from schemas.refs import SaeRef
from schemas.sae import StreamSettings
from schemas.sae_specs import ImportSaeSpec

METHOD = 1
TABLES: dict[str, dict[str, tuple[str, ...]]] = {"sae": {"import": (), "evaluate": ("sae_summary",)}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"sae": (WEIGHTS,)}
ROUNDS = (Round(name="import", rows=1, shard_rows=1), Round(name="evaluate", rows=1, shard_rows=1))
RUNS_PER_IMAGE = 4
"""As it is, spliced, with zeros and with the mean."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """One plan per SAE.

    Raises:
        NotInspected: the model or the image set is not known yet.
        BadSpec, UnknownSite: the spec asks for tokens that are not there.
    """
    spec = cell.spec
    assert isinstance(spec, ImportSaeSpec)
    facts = get_facts(cell, known)
    tokens = next(iter(find_tokens(cell, known)))
    refs = [SaeRef.parse(text) for text in dict.fromkeys(spec.saes)]
    return tuple(_plan(spec, facts, tokens, ref, known.files[ref.location]) for ref in refs)


def _plan(spec: ImportSaeSpec, facts: ModelFacts, tokens: SiteTokens, ref: SaeRef, sha256: str) -> Plan:
    # held-out blocks are those of a training with the same blocks, share and seed, whatever its batches are
    stream = StreamSettings(
        batch_tokens=1, buffer_batches=1, block_images=spec.block_images, holdout=spec.holdout, seed=spec.order_seed
    )
    params: dict[str, JsonValue] = {
        **measured_params(spec, facts, tokens, stream),
        "format": ref.source,
        "sha256": sha256,
    }
    stage = StageSpec(
        kind="import_sae",
        method=METHOD,
        subject=facts.model,
        output="sae",
        params=params,
        inputs=measured_inputs(params, tokens),
    )
    return Plan(
        stage=stage,
        rounds=ROUNDS,
        worker=f"import_sae {digest(params)}",  # not shared: a file that cannot be read must not fail the others
        effort={
            "forward": tokens.forward.model_dump(mode="json"),
            "source": tokens.source,
            "location": ref.location,
            "width": tokens.width(facts),
            "index": tokens.forward.index,
        },
    )


def estimate(plan: Plan, known: Known) -> Estimate:
    """The held-out images and what the model computes on them; how large the SAE is, its files say later."""
    facts = known.models.get(plan.stage.subject)
    if facts is None:
        return Estimate()
    stream: StreamSettings = load_json(StreamSettings, canonical_json(plan.stage.params["stream"]))
    held_out = round(tokens_of(plan).forward.rows * stream.holdout)
    images = min(held_out, int(plan.stage.params["evaluate_images"]))  # type: ignore[arg-type]
    return Estimate(images=images, flops=images * RUNS_PER_IMAGE * facts.flops)
