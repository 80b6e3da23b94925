"""Map_explanations cells to plans: one map per SAE of the texts about its features; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue

from jobs.activations import Forward, checkpoint, get_facts, model_digest
from jobs.explained import OWN_DIRECTION, find_explained
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, Known
from jobs.text_encoders import TextEncoder, encoder_bytes, encoder_of, extras_of, find_encoder
from miclip_core.extras import UMAP, Extra
from schemas.base import canonical_json, digest
from schemas.errors import BadSpec, NoLanguageModel, NotInspected
from schemas.explain_specs import MapExplanationsSpec
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec, load_json

METHOD = 1
TABLES = {"map": {"map": ("explanation_map", "explanation_clusters")}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"map": ()}
TEXT_BYTES = 2000
"""Of a text with what says whose it is, as a row of Python objects and of two tables."""
COPIES = 28
"""Bytes for each number of an embedding: as made and as stored (4 each), and 64-bit ones of k-means, sorted and centred."""
VOTES = 2
"""Texts that are selected of a feature: by masks and by heatmaps."""
SENTENCE_WIDTH = 1024
"""Numbers of an embedding by a folder, about which planning knows nothing; 384 to 1,024 are usual."""
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
    most = max(_count_texts(cell, stages) for stages in by_sae.values())
    return tuple(
        _plan(spec, facts, encoder, asked, site, sae, stages, most) for (site, sae), stages in sorted(by_sae.items())
    )


def _find_texts(cell: Cell) -> list[StageSpec]:
    """The stages whose texts are mapped, each once; in an order of their own, whatever is read first."""
    assert isinstance(cell.spec, MapExplanationsSpec)
    if cell.spec.texts == "all":
        if found := [one.stage for one in find_explained(cell) if one.variant.direction == OWN_DIRECTION]:
            return found
        raise BadSpec(
            f"stages.{cell.name}.reads: no explain stage, whose texts are mapped by texts: all, but for controls, which say "
            "nothing of a feature; read one with direction: sae, or set texts: selected"
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


def _count_texts(cell: Cell, stages: Sequence[StageSpec]) -> int:
    """How many texts there may be in a map: those of all features that planning reckons with."""
    read = {plan.digest: plan for plans in cell.reads.values() for plan in plans}
    if stages[0].kind == "explain":
        texts = (read[stage.digest] for stage in stages)
        return sum(plan.rounds[0].rows * int(str(plan.stage.params.get("sequences", 1))) for plan in texts)
    saes = {stage.inputs["sae"] for stage in stages}
    scored = [plan for plan in read.values() if plan.stage.inputs.get("sae") in saes]
    return VOTES * len(stages) * max(plan.rounds[0].rows for plan in scored)


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
    most: int,
) -> Plan:
    """most: texts of the largest map of this worker, about."""
    params: dict[str, Any] = {
        "site": site,
        "texts": spec.texts,
        "encoder": encoder.files,
        "clusters": spec.clusters,
        "restarts": spec.restarts,
        "layout": spec.layout,
        "topics": "words" if asked is None else f"vlm:{asked.model}",
        "random_seed": spec.seed,
    }
    if spec.layout == "umap":
        params |= {"neighbours": spec.neighbours, "min_dist": spec.min_dist}
    inputs = {"sae": sae, **{f"texts.{number}": stage.digest for number, stage in enumerate(stages)}}
    effort: dict[str, JsonValue] = {"encoder": encoder.model_dump(mode="json"), "asked": None, "most": most}
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


def needs(plan: Plan) -> list[Extra]:
    """The optional packages that its worker needs."""
    return [*extras_of(encoder_of(plan)), *([UMAP] if plan.stage.params["layout"] == "umap" else [])]


def texts_of(plan: Plan) -> tuple[str, list[str]]:
    """The table that has the texts, and the stages that publish it."""
    table = "explanations" if plan.stage.params["texts"] == "all" else "selected_explanations"
    return table, [stage for name, stage in plan.stage.inputs.items() if name.startswith("texts.")]


def estimate(plan: Plan, known: Known) -> Estimate:
    """What the worker holds: libraries, the encoder, the texts with their embeddings, and the model that names topics.

    The rest takes seconds.
    """
    encoder = encoder_of(plan)
    clip = known.models.get(encoder.name)
    width = clip.embed_dim if clip and clip.embed_dim else SENTENCE_WIDTH
    held = encoder_bytes(encoder, known) + int(str(plan.effort["most"])) * (TEXT_BYTES + COPIES * width)
    if (asked := asked_of(plan)) is not None:
        facts = known.models[asked.model]
        language = facts.language.params if facts.language else 0
        held += USUAL_BYTES[str(asked.params["dtype"])] * (facts.params + language)
    note = "; ".join(extra.note for extra in needs(plan) if extra.note)
    return Estimate(worker_memory=LIBRARY_BYTES + held, note=note)
