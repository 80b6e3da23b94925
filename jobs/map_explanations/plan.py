"""Map_explanations cells to plans: one map per SAE of the texts about its features; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue

from jobs.activations import Forward, checkpoint, get_facts, model_digest
from jobs.explained import find_explained
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, Known
from jobs.text_encoders import TextEncoder, encoder_of, find_encoder
from schemas.base import canonical_json, digest
from schemas.errors import BadSpec, NoLanguageModel, NotInspected
from schemas.explain_specs import MapExplanationsSpec
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec, load_json

METHOD = 1
TABLES = {"map": {"map": ("explanation_map", "explanation_clusters")}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"map": ()}
USUAL_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Per parameter of the model that is asked for topics."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """A map per SAE, of the texts of all vision-language models about its features.

    Raises:
        NotInspected: a model is not known yet. NoLanguageModel: the one that is asked for topics writes no text.
        BadSpec: nothing that is read has the texts, or the CLIP embeds none.
    """
    spec = cell.spec
    assert isinstance(spec, MapExplanationsSpec)
    facts, encoder, asked = get_facts(cell, known), find_encoder(cell, known, spec.sentences), _find_asked(cell, known)
    by_sae: dict[tuple[str, str], list[StageSpec]] = {}
    for stage in _find_texts(cell):
        by_sae.setdefault((str(stage.params["site"]), stage.inputs["sae"]), []).append(stage)
    return tuple(
        _plan(spec, facts, encoder, asked, site, sae, stages) for (site, sae), stages in sorted(by_sae.items())
    )


def _find_texts(cell: Cell) -> list[StageSpec]:
    """The stages whose texts are mapped, each once; in an order of their own, whatever is read first."""
    assert isinstance(cell.spec, MapExplanationsSpec)
    if cell.spec.texts == "all":
        if found := [one.stage for one in find_explained(cell)]:
            return found
        raise BadSpec(
            f"stages.{cell.name}.reads: no explain stage, whose texts are mapped by texts: all; read one, or set "
            "texts: selected"
        )
    summaries = {
        plan.digest: plan.stage
        for plans in cell.reads.values()
        for plan in plans
        if plan.stage.kind == "score_explanations" and plan.stage.output == "summary"
    }
    if not summaries:
        raise BadSpec(
            f"stages.{cell.name}.reads: no score_explanations stage, which selects a text for each feature; read one, or set "
            "texts: all"
        )
    return [summaries[stage] for stage in sorted(summaries)]


def _find_asked(cell: Cell, known: Known) -> ModelFacts | None:
    """The vision-language model that names topics, if one does."""
    if not cell.spec.beside:
        return None
    (ref,) = cell.spec.beside
    facts = known.models.get(ref)
    if facts is None:
        raise NotInspected(f"{ref} is not inspected yet")
    if facts.language is None:
        raise NoLanguageModel(
            f"topics: {ref} (family {facts.family}) writes no text; name a vision-language model such as "
            "hf:google/gemma-3-4b-it, or words"
        )
    return facts


def _plan(
    spec: MapExplanationsSpec,
    facts: ModelFacts,
    encoder: TextEncoder,
    asked: ModelFacts | None,
    site: str,
    sae: str,
    stages: Sequence[StageSpec],
) -> Plan:
    params: dict[str, Any] = {
        "site": site,
        "texts": spec.texts,
        "encoder": encoder.model_dump(mode="json"),
        "clusters": spec.clusters,
        "restarts": spec.restarts,
        "layout": spec.layout,
        "topics": "words" if asked is None else f"vlm:{asked.model}",
        "random_seed": spec.seed,
    }
    if spec.layout == "umap":
        params |= {"neighbours": spec.neighbours, "min_dist": spec.min_dist}
    inputs = {"sae": sae, **{f"texts.{number}": stage.digest for number, stage in enumerate(stages)}}
    effort: dict[str, JsonValue] = {"asked": None}
    if asked is not None:
        params["dtype"] = spec.dtype
        inputs["asked"] = model_digest(asked)
        effort["asked"] = _asked_forward(asked, spec.dtype).model_dump(mode="json")
    stage = StageSpec(
        kind="map_explanations", method=METHOD, subject=facts.model, output="map", params=params, inputs=inputs
    )
    rounds = (Round(name="map", rows=1, shard_rows=1),)
    worker = f"map_explanations {facts.model} {digest([params['encoder'], params['topics']])}"
    return Plan(stage=stage, rounds=rounds, worker=worker, effort=effort)


def _asked_forward(asked: ModelFacts, dtype: str) -> Forward:
    """How the model that names topics is opened; no image goes through it."""
    return Forward(
        model=asked.model, inputs={"model": model_digest(asked)}, params={"dtype": dtype}, effort=checkpoint(asked)
    )


def asked_of(plan: Plan) -> Forward | None:
    """How the model that names topics is opened, if one does."""
    return None if plan.effort["asked"] is None else load_json(Forward, canonical_json(plan.effort["asked"]))


def texts_of(plan: Plan) -> tuple[str, list[str]]:
    """The table that has the texts, and the stages that publish it."""
    table = "explanations" if plan.stage.params["texts"] == "all" else "selected_explanations"
    return table, [stage for name, stage in plan.stage.inputs.items() if name.startswith("texts.")]


def estimate(plan: Plan, known: Known) -> Estimate:
    """What the worker holds: libraries, the encoder, and the model that names topics; the rest takes seconds."""
    clip = known.models.get(encoder_of(plan.stage).name)
    held = 4 * clip.params if clip else 0
    if (asked := asked_of(plan)) is not None:
        facts = known.models[asked.model]
        language = facts.language.params if facts.language else 0
        held += USUAL_BYTES[str(asked.params["dtype"])] * (facts.params + language)
    return Estimate(worker_memory=LIBRARY_BYTES + held)
