"""Extract cells to plans: one stage per (site, output) and per model output, all siblings of one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jobs.activations import Forward, get_facts, make_forward
from jobs.embeddings import embeddings_stage, text_plan, worker_of
from jobs.memory import LIBRARY_BYTES
from jobs.predictions import choose_classes
from jobs.protocol import Cell, Estimate, Known
from schemas.errors import BadSpec
from schemas.extract_specs import SITE_OUTPUTS, ExtractSpec
from schemas.models import ModelFacts, resolve_sites, rows_per_image, site_width
from schemas.plans import Plan, Round, StageSpec
from schemas.refs import Site
from schemas.tables import PART_BYTES, ROW_GROUP_BYTES

METHODS = {
    "activation_moments": 1,
    "top_images": 1,
    "predictions": 1,
}
TABLES = {
    "activations": {"map": ("activations", "bad_inputs")},
    "activation_moments": {"map": ("bad_inputs",), "merge": ("activation_moments",)},
    "top_images": {"map": ("bad_inputs",), "merge": ("top_images",)},
    "embeddings": {"map": ("embeddings", "bad_inputs")},
    "predictions": {"map": ("predictions", "bad_inputs")},
    "text_embeddings": {"texts": ("text_embeddings",)},
}
ARTIFACTS: dict[str, tuple[str, ...]] = dict.fromkeys(TABLES, ())
READ_AHEAD_BYTES = 64 << 20
WAITING_BATCHES = 6
MERGED = ("activation_moments", "top_images")


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The plans of one model of an extract stage.

    Raises:
        NotInspected: the model or the image set is not known yet.
        UnknownSite, BadSpec: the spec asks for what this model does not have.
    """
    spec = cell.spec
    assert isinstance(spec, ExtractSpec) and cell.model is not None
    facts = get_facts(cell, known)
    plans = [_text_plan(spec, facts)] if "text_embeddings" in spec.outputs else []
    outputs = [o for o in spec.outputs if o != "text_embeddings"]
    if outputs:
        plans += _image_plans(spec, facts, make_forward(cell, known), outputs)
    return tuple(plans)


def _image_plans(spec: ExtractSpec, facts: ModelFacts, forward: Forward, outputs: Sequence[str]) -> Iterator[Plan]:
    for output, params in _products(spec, facts, outputs):
        rounds = [Round(name="map", rows=forward.rows, shard_rows=spec.shard_rows)]
        if output in MERGED:
            rounds.append(Round(name="merge", rows=1, shard_rows=1))
        if output == "activations":
            stage = forward.stage(str(params["site"]), spec.round_to)
        elif output == "embeddings":
            stage = embeddings_stage(forward, spec.round_to)
        else:
            stage = StageSpec(
                kind="extract",
                method=METHODS[output],
                subject=facts.model,
                output=output,
                params={**forward.params, **params},
                inputs=forward.inputs,
            )
        yield Plan(stage=stage, rounds=tuple(rounds), worker=worker_of(forward), effort=forward.effort)


def _products(spec: ExtractSpec, facts: ModelFacts, outputs: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(output, its own params) of every stage that reads images, in the spec's order."""
    for output in outputs:
        if output in SITE_OUTPUTS:
            for site in resolve_sites(facts, spec.sites):
                yield output, {"site": str(site), **_site_params(spec, output)}
        elif output == "embeddings":
            facts.check_embeds()
            yield output, {"round_to": spec.round_to}
        elif output == "predictions":
            yield output, {"k": spec.predictions_k, **_classes(spec, facts)}


def _site_params(spec: ExtractSpec, output: str) -> dict[str, Any]:
    params: dict[str, dict[str, Any]] = {"top_images": {"k": spec.top_k}}
    return params.get(output, {})


def _classes(spec: ExtractSpec, facts: ModelFacts) -> dict[str, Any]:
    """Zero-shot classes for a model with a text tower, else the model's own head."""
    if facts.has_text and spec.classes is None:
        raise BadSpec(
            f"outputs: predictions of {facts.model} need classes, a dual encoder has none of its own; "
            "add classes: {names: [...], templates: openai80}"
        )
    found = choose_classes(facts, spec.classes)
    if found is None:
        raise BadSpec(
            f"outputs: {facts.model} has neither a text tower nor a head, so it predicts nothing; take this model out of "
            "the stage, or predictions out of its outputs, and where other stages need them have these read a probe stage"
        )
    return {"templates": [], **found}


def _text_plan(spec: ExtractSpec, facts: ModelFacts) -> Plan:
    return text_plan(
        facts,
        spec.texts,
        spec.classes.names if spec.classes else (),
        spec.classes.templates if spec.classes else (),
        dtype=spec.dtype,
        round_to=spec.round_to,
        batch_size=spec.batch_size,
    )


def estimate(plan: Plan, known: Known) -> Estimate:
    """Images, FLOPs of the whole forward, stored bytes, and what this stage adds to a worker's memory."""
    facts = known.models.get(plan.stage.subject)
    if facts is None or plan.stage.output == "text_embeddings":
        return Estimate()
    params: dict[str, Any] = plan.stage.params
    rows, width, per_image = int(params["rows"]), facts.embed_dim or 0, 1
    if "site" in params:
        site = Site.parse(params["site"])
        width, per_image = site_width(facts, site), rows_per_image(facts, site)
    vector_bytes = {"fp16": 1.8, "bf16": 1.4, "fp32": 3.5}[params.get("round_to", "fp16")]
    stored = {
        "activations": rows * per_image * width * vector_bytes,
        "embeddings": rows * width * vector_bytes,
        "activation_moments": width * 50,
        "top_images": width * params.get("k", 0) * 60,
        "predictions": rows * params.get("k", 0) * 20,
    }[plan.stage.output]
    return Estimate(
        images=rows,
        shared_flops=rows * facts.flops,
        bytes=int(stored),
        memory=_stage_memory(plan, facts, width, per_image),
        worker_memory=_worker_memory(plan, facts),
    )


def _stage_memory(plan: Plan, facts: ModelFacts, width: int, per_image: int) -> int:
    """The tapped tensor and its rows for one batch, then what is being encoded: a part, a row group, waiting batches."""
    batch = int(plan.effort["batch_size"])  # type: ignore[arg-type]
    params: dict[str, Any] = plan.stage.params
    whole = facts.site(Site.parse(params["site"]).path).positions * width * 4 * batch if "site" in params else 0
    rows = batch * per_image * width * 4
    match plan.stage.output:
        case "activations" | "embeddings":
            part = min(plan.rounds[0].shard_rows * per_image * width * 4, PART_BYTES)
            return whole + WAITING_BATCHES * rows + part + 2 * ROW_GROUP_BYTES
        case "activation_moments":
            return whole + 4 * rows + 5 * 8 * width
        case "top_images":
            return whole + 2 * rows + 3 * 80 * width * (int(params["k"]) + batch)
        case _:
            return whole + rows


def _worker_memory(plan: Plan, facts: ModelFacts) -> int:
    """Libraries, weights twice while they load, images on their way in, and the widest moment of a forward."""
    batch = int(plan.effort["batch_size"])  # type: ignore[arg-type]
    pixels = 3 * facts.input_hw[0] * facts.input_hw[1]
    images = batch * pixels * (3 + 2 * 4) + READ_AHEAD_BYTES
    widest = max(facts.mlp_width or 0, 3 * facts.width)
    forward = 3 * batch * (facts.grid[0] * facts.grid[1] + facts.n_prefix) * widest * 4
    return LIBRARY_BYTES + 2 * 4 * facts.params + images + forward
