"""Sae_features cells to plans: one stage per SAE; images are encoded in shards, features described in buckets, then ranked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import JsonValue

from jobs.activations import get_facts, make_forward
from jobs.embeddings import embeddings_stage
from jobs.protocol import Cell, Estimate, Known
from jobs.sae_tokens import SiteTokens, find_whole, patch_positions, tokens_of, whole_site
from schemas.base import digest
from schemas.errors import BadSpec, UnknownSite
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec
from schemas.sae_specs import SaeFeaturesSpec

METHOD = 1
TABLES = {
    "features": {
        "map": (),
        "merge": ("sae_codes", "sae_features", "sae_top_images"),
        "rank": ("sae_selectivity",),
    }
}
ARTIFACTS: dict[str, tuple[str, ...]] = {"features": ()}
EMBEDDING = "embedding"
READ_IMAGES = 64
"""Rows of the index that are encoded together, counted from 0: so codes do not depend on how the index is cut."""
BUCKET_CODES = 1 << 23
"""Codes that one bucket of features is expected to hold."""
SHARD_CODES = 1 << 23
"""Codes that one shard of images is expected to hold."""
USUAL_K = 64
"""Active latents per token of an SAE that does not say."""
CODE_BYTES = {"parts": 12, "sorting": 60, "merging": 140, "table": 9}
"""Bytes per code: stored between the rounds, at the peak of either round, and in the published table."""
TOKEN_BYTES = 12
"""Per number of a token: as stored, in float32, and less its mean."""
IMAGE_BYTES = 600
"""Of the labels and names of one image in the merge round."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The plans of every SAE of one model.

    Raises:
        NotInspected: the model or the image set is not known yet.
        BadSpec: no SAE is of this model.
    """
    spec = cell.spec
    assert isinstance(spec, SaeFeaturesSpec)
    facts = get_facts(cell, known)
    saes = tuple(_saes(cell, known, facts))
    if not saes:
        raise BadSpec(
            f"stages.{cell.name}: none of the SAEs is of {cell.model}; give SAEs that were trained on this model"
        )
    tokens = [_find_tokens(cell, known, facts, str(sae.params["site"])) for sae in saes]
    largest = max(_codes_per_image(facts, t, sae) for t, sae in zip(tokens, saes, strict=True))
    fitting = min(spec.shard_rows, SHARD_CODES // largest)
    shard_rows = max(1, fitting // READ_IMAGES) * READ_IMAGES
    return tuple(_plan(cell, facts, t, sae, shard_rows) for t, sae in zip(tokens, saes, strict=True))


def _saes(cell: Cell, known: Known, facts: ModelFacts) -> Iterator[StageSpec]:
    """SAEs of this model, each once: of stages that are read, then those named."""
    assert isinstance(cell.spec, SaeFeaturesSpec)
    read = [plan.stage for plans in cell.reads.values() for plan in plans if plan.stage.output == "sae"]
    named = [known.stages[ref] for ref in cell.spec.saes]
    for ref, stage in zip(cell.spec.saes, named, strict=True):
        if stage.output != "sae":
            raise BadSpec(
                f"stages.{cell.name}.saes: {ref} is a stage of kind {stage.kind}; expected train_sae or import_sae"
            )
    unique = {stage.digest: stage for stage in (*read, *named) if stage.subject == facts.model}
    yield from unique.values()


def _find_tokens(cell: Cell, known: Known, facts: ModelFacts, trained_on: str) -> SiteTokens:
    """All tokens of the kind that the SAE was trained on: a sampled site is seen whole here.

    Those that a read stage stores; else a forward pass, over the images of the read stage if there is one.
    """
    assert isinstance(cell.spec, SaeFeaturesSpec)
    whole = whole_site(facts, trained_on)
    found = find_whole(cell, whole)
    if found is not None:
        return found
    if any(plan.stage.kind == "extract" for plans in cell.reads.values() for plan in plans):
        raise BadSpec(
            f"stages.{cell.name}.reads: the extract stage stores neither activations nor embeddings of {cell.model}; add "
            "one of them to its outputs, or leave it out and give images"
        )
    return SiteTokens(forward=make_forward(cell, known), site=whole, round_to=cell.spec.round_to, stored=False)


def _plan(cell: Cell, facts: ModelFacts, tokens: SiteTokens, sae: StageSpec, shard_rows: int) -> Plan:
    spec = cell.spec
    assert isinstance(spec, SaeFeaturesSpec)
    forward = tokens.forward
    embeddings = _find_embeddings(cell, facts, tokens)
    inputs = {"sae": sae.digest, "activations": tokens.stage.digest, "labels": forward.index}
    if embeddings is not None:
        inputs["embeddings"] = embeddings.digest
    stage = StageSpec(
        kind="sae_features",
        method=METHOD,
        subject=facts.model,
        output="features",
        params={
            "site": tokens.site,
            "round_to": tokens.round_to,
            "rows": forward.rows,
            "tables": [*sorted(spec.tables)],
            "top_k": spec.top_k,
            # left out where it is the default, so that stages from before this field keep their digests
            **({} if spec.rank_by == "max" else {"rank_by": spec.rank_by}),
            "concepts_per_feature": spec.concepts_per_feature,
            "features_per_concept": spec.features_per_concept,
            "max_values": spec.max_values,
            "min_positives": spec.min_positives,
            **patch_positions(facts, tokens),
        },
        inputs=inputs,
    )
    buckets = -(-forward.rows * _codes_per_image(facts, tokens, sae) // BUCKET_CODES)
    rounds = [
        Round(name="map", rows=forward.rows, shard_rows=shard_rows),
        Round(name="merge", rows=max(1, buckets), shard_rows=1),
    ]
    if "selectivity" in spec.tables:
        rounds.append(Round(name="rank", rows=1, shard_rows=1))
    effort: dict[str, JsonValue] = {
        "forward": forward.model_dump(mode="json"),
        "source": tokens.source,
        "index": forward.index,
    }
    worker = f"sae_features {facts.model} {digest([forward.inputs, forward.params, tokens.round_to, tokens.source])}"
    return Plan(stage=stage, rounds=tuple(rounds), worker=worker, effort=effort)


def rank_by(plan: Plan) -> str:
    """What the top images of a plan go by: `max` or `mean` of an image's codes."""
    return str(plan.stage.params.get("rank_by", "max"))


def _find_embeddings(cell: Cell, facts: ModelFacts, tokens: SiteTokens) -> StageSpec | None:
    """The image embeddings of the same forward pass: stored beside the tokens, or computed with them; None if neither."""
    if tokens.stored:
        stages = [plan.stage for plans in cell.reads.values() for plan in plans if plan.stage.output == "embeddings"]
        return next((stage for stage in stages if stage.inputs == tokens.forward.inputs), None)
    try:
        facts.site(EMBEDDING)
    except UnknownSite:
        return None
    return embeddings_stage(tokens.forward, tokens.round_to)


def _codes_per_image(facts: ModelFacts, tokens: SiteTokens, sae: StageSpec) -> int:
    """Expected, and at least 1; for sizes of shards and buckets, which decide no result."""
    settings: Any = sae.params.get("sae") or {}
    k = settings.get("k") if isinstance(settings, dict) else None
    return tokens.per_image(facts) * int(k or USUAL_K)


def estimate(plan: Plan, known: Known) -> Estimate:
    """Images, FLOPs of forwards that nothing stored, bytes of codes (published and between the rounds), memory.

    The encoder's own FLOPs are left out, because a plan does not know the width of an SAE that is still to be made.
    """
    facts = known.models.get(plan.stage.subject)
    if facts is None:
        return Estimate()
    tokens, params = tokens_of(plan), plan.stage.params
    rows, positions = tokens.forward.rows, tokens.per_image(facts)
    codes = min(plan.rounds[1].rows * BUCKET_CODES, rows * positions * USUAL_K)
    tokens_read = READ_IMAGES * positions * tokens.width(facts) * TOKEN_BYTES
    sorting = min(SHARD_CODES, codes) * CODE_BYTES["sorting"]
    merging = min(BUCKET_CODES, codes) * CODE_BYTES["merging"] + rows * IMAGE_BYTES
    published = codes * CODE_BYTES["table"] if "codes" in params["tables"] else 0  # type: ignore[operator]
    return Estimate(
        images=rows,
        shared_flops=0 if tokens.stored else rows * facts.flops,
        bytes=published + codes * CODE_BYTES["parts"],
        memory=max(sorting, merging) + tokens_read,
        worker_memory=0 if tokens.stored else 8 * facts.params,
    )
