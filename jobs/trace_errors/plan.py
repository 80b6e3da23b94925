"""Trace_errors cells to plans: one stage per trace, which is the neuron encoders of several layers; loads no torch."""

from __future__ import annotations

from pydantic import JsonValue

from jobs.activations import get_facts
from jobs.encoders import find_encoders
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, Known
from jobs.sae_tokens import SiteTokens, choose_sites
from jobs.tokens.blocks import READ_BYTES
from jobs.trace_errors.layers import Trace, find_traces
from jobs.trace_errors.traced import find_traced
from schemas.base import canonical_json, digest
from schemas.errors import BadSpec
from schemas.evaluate_specs import TraceErrorsSpec
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec, load_json

METHOD = 1
TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "traces": {"map": ("layer_trace", "error_traces"), "merge": ("trace_summary",)}
}
ARTIFACTS: dict[str, tuple[str, ...]] = {"traces": ()}
READ_IMAGES = 64
"""Rows of the index that are embedded together, counted from 0: so cosines do not depend on how the index is cut."""
IMAGE_BYTES = 200
"""Of the classes of one image; every worker holds those of all images."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The traces of one model: every variant and seed of the encoders of its layers.

    Raises:
        NotInspected: the model is not known yet.
        BadSpec: nothing that is read has encoders, the sites of encoders are no layers, or the extract stages that are
            read lack what is traced, or encoders were trained without classes.
        UnknownSite: the model has no such site.
    """
    spec = cell.spec
    assert isinstance(spec, TraceErrorsSpec)
    facts, where = get_facts(cell, known), f"stages.{cell.name}"
    encoders = find_encoders(cell)
    if not encoders:
        raise BadSpec(
            f"{where}.reads: found no neuron encoders of {facts.model}; add an align stage over several sites"
        )
    what = f"the encoders of {facts.model} that are read"
    wanted = choose_sites(where, what, facts, spec.sites, (encoder.site for encoder in encoders))
    chosen = [encoder for encoder in encoders if encoder.site in wanted]
    if blind := [encoder for encoder in chosen if "texts" not in encoder.plan.stage.inputs]:
        raise BadSpec(
            f"{where}.reads: {blind[0].variant} of {facts.model} at {blind[0].site} was trained without classes, so there are "
            "none to trace towards; add predictions to the outputs of the extract stage that the align stage reads"
        )
    traces = find_traces(where, facts, chosen)
    towards = {
        plan.digest: plan.stage.params["classes"]
        for plans in cell.reads.values()
        for plan in plans
        if plan.stage.output == "text_embeddings"
    }
    return tuple(_plan(cell, facts, trace, towards[_texts(trace)]) for trace in traces)


def _plan(cell: Cell, facts: ModelFacts, trace: Trace, towards: JsonValue) -> Plan:
    spec, first = cell.spec, trace[0].encoder
    assert isinstance(spec, TraceErrorsSpec) and isinstance(towards, list)
    classes = [str(name) for name in towards]
    traced = find_traced(cell, facts, trace, classes)
    inputs = {"predictions": traced.predictions, "texts": _texts(trace), "labels": traced.forward.index}
    for layer in trace:
        inputs[f"encoder.{layer.number}"] = layer.encoder.plan.digest
        inputs[f"activations.{layer.number}"] = traced.tokens[layer.number].stage.digest
    sites: list[JsonValue] = [layer.encoder.site for layer in trace]
    stage = StageSpec(
        kind="trace_errors",
        method=METHOD,
        subject=facts.model,
        output="traces",
        params={
            "method": "miclip",
            "variant": first.variant,
            "seed": first.seed,
            "layers": [layer.number for layer in trace],
            "sites": sites,
            "pool": first.plan.stage.params["pool"],
            "rows": traced.forward.rows,
            "labels_from": spec.labels_from,
            "classes": list(classes),
        },
        inputs=inputs,
    )
    shard_rows = -(-spec.shard_rows // READ_IMAGES) * READ_IMAGES
    read = {name: value for name, value in inputs.items() if not name.startswith("encoder.")}
    return Plan(
        stage=stage,
        rounds=(
            Round(name="map", rows=traced.forward.rows, shard_rows=shard_rows),
            Round(name="merge", rows=1, shard_rows=1),
        ),
        # activations are read and pooled once for all variants and seeds
        worker=f"trace_errors {facts.model} {digest([read, sites, stage.params['pool'], spec.labels_from])}",
        effort={
            "tokens": {str(number): site.model_dump(mode="json") for number, site in traced.tokens.items()},
            "per_image": {str(number): site.per_image(facts) for number, site in traced.tokens.items()},
            "width": {str(number): site.width(facts) for number, site in traced.tokens.items()},
            "dim": first.plan.effort["dim"],
        },
    )


def _texts(trace: Trace) -> str:
    return trace[0].encoder.plan.stage.inputs["texts"]


def layers_of(plan: Plan) -> dict[int, SiteTokens]:
    """Number of each layer of a plan, ascending -> the activations there."""
    tokens = plan.effort["tokens"]
    assert isinstance(tokens, dict)
    found = {int(number): load_json(SiteTokens, canonical_json(value)) for number, value in tokens.items()}
    return dict(sorted(found.items()))


def _of_layers(plan: Plan, name: str) -> dict[int, int]:
    values = plan.effort[name]
    assert isinstance(values, dict)
    return {int(number): int(str(value)) for number, value in values.items()}


def per_image(plan: Plan) -> dict[int, int]:
    """Number of each layer -> tokens that one image has there."""
    return _of_layers(plan, "per_image")


def numbers_per_image(plan: Plan) -> int:
    """Numbers that one image has at all layers together."""
    counts, widths = per_image(plan), _of_layers(plan, "width")
    return sum(counts[number] * widths[number] for number in counts)


def estimate(plan: Plan, known: Known) -> Estimate:
    """Images through the linear maps of all layers; the tokens of some images at every layer are in memory."""
    widths = sum(_of_layers(plan, "width").values())
    rows, dim = plan.rounds[0].rows, int(str(plan.effort["dim"]))
    return Estimate(
        images=rows,
        flops=2 * rows * dim * widths,
        memory=4 * dim * widths,
        worker_memory=LIBRARY_BYTES + 3 * READ_BYTES + 12 * READ_IMAGES * numbers_per_image(plan) + rows * IMAGE_BYTES,
    )
