"""The image and text embeddings of a model as stages, for whoever needs them; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from jobs.activations import Forward, checkpoint, model_digest
from schemas.base import digest
from schemas.cells import templates_json
from schemas.errors import BadSpec
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec

METHOD = 1
TEXT_METHOD = 1
TEXT_SHARD = 1024
CLIP_ROUND_TO = "fp16"
"""Of the embeddings of a CLIP beside a model, as extract stores them if nothing else is asked for."""
CLIP_SHARD_ROWS = 2048


def worker_of(forward: Forward) -> str:
    """The key that all stages of one forward pass share."""
    return f"extract {forward.model} {digest([forward.inputs, forward.params])}"


def embeddings_stage(forward: Forward, round_to: str) -> StageSpec:
    """The stage that holds the image embeddings of a forward pass."""
    return StageSpec(
        kind="extract",
        method=METHOD,
        subject=forward.model,
        output="embeddings",
        params={**forward.params, "round_to": round_to},
        inputs=forward.inputs,
    )


def embeddings_plan(forward: Forward, round_to: str, shard_rows: int) -> Plan:
    """What makes that stage."""
    rounds = (Round(name="map", rows=forward.rows, shard_rows=shard_rows),)
    return Plan(
        stage=embeddings_stage(forward, round_to), rounds=rounds, worker=worker_of(forward), effort=forward.effort
    )


def clip_forward(forward: Forward, clip: ModelFacts) -> Forward:
    """The pass of a CLIP over the same images."""
    effort = {"batch_size": forward.effort["batch_size"], "index": forward.effort["index"], **checkpoint(clip)}
    return Forward(
        model=clip.model, inputs={**forward.inputs, "model": model_digest(clip)}, params=forward.params, effort=effort
    )


def clip_images_plan(forward: Forward, clip: ModelFacts) -> Plan:
    """What makes the embeddings that a CLIP gives the images of a model's pass."""
    return embeddings_plan(clip_forward(forward, clip), CLIP_ROUND_TO, CLIP_SHARD_ROWS)


def clip_texts_plan(forward: Forward, clip: ModelFacts, names: Sequence[str], templates: str | Sequence[str]) -> Plan:
    """What makes the embeddings of names, each averaged over templates, in the space of those images.

    Raises:
        BadSpec: the CLIP has no text tower.
    """
    if not clip.has_text:
        raise BadSpec(f"clip: {clip.model} has no text tower, so no concept is in its space; name a CLIP that has one")
    batch_size = int(str(forward.effort["batch_size"]))
    return text_plan(clip, (), names, templates, dtype="fp32", round_to="fp32", batch_size=batch_size)


def text_plan(
    facts: ModelFacts,
    texts: Sequence[str],
    classes: Sequence[str],
    templates: str | Sequence[str],
    *,
    dtype: str,
    round_to: str,
    batch_size: int,
) -> Plan:
    """Embeddings of texts as they are, then of classes averaged over templates.

    Raises:
        BadSpec: the model has no text tower.
    """
    if not facts.has_text:
        raise BadSpec(
            f"outputs: {facts.model} has no text tower, so no text_embeddings; take this model out of the stage, or "
            "text_embeddings out of its outputs"
        )
    params: dict[str, JsonValue] = {
        "texts": [text.strip() for text in texts],
        "classes": list(classes),
        "templates": templates_json(templates) if classes else [],
        "dtype": dtype,
        "round_to": round_to,
    }
    stage = StageSpec(
        kind="extract",
        method=TEXT_METHOD,
        subject=facts.model,
        output="text_embeddings",
        params=params,
        inputs={"model": model_digest(facts)},
    )
    return Plan(
        stage=stage,
        rounds=(Round(name="texts", rows=len(texts) + len(classes), shard_rows=TEXT_SHARD),),
        worker=f"extract {facts.model} texts {dtype}",
        effort={"batch_size": batch_size, **checkpoint(facts)},
    )
