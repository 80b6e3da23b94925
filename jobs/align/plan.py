"""Align cells to plans: one stage per neuron encoder, beside the embeddings of the CLIP that it needs; loads no torch."""

from __future__ import annotations

from jobs.activations import get_facts
from jobs.embeddings import clip_forward, clip_images_plan, clip_texts_plan
from jobs.encoders import WEIGHTS, settings_of
from jobs.memory import LIBRARY_BYTES
from jobs.predictions import class_names, find_predictions, predictions_read
from jobs.protocol import Cell, Estimate, Known
from jobs.sae_tokens import SiteTokens, find_stored, planned_tokens
from schemas.align import AlignSettings
from schemas.align_specs import AlignSpec
from schemas.base import digest
from schemas.cells import templates_json
from schemas.errors import BadSpec, NotInspected
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec

METHOD = 1
TABLES: dict[str, dict[str, tuple[str, ...]]] = {"encoder": {"train": ("align_metrics", "alignments")}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"encoder": (WEIGHTS,)}


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The encoders of one model: every variant at every site; before them the embeddings of images and class names.

    Raises:
        NotInspected: the model or the CLIP is not known yet.
        BadSpec: the stages that are read hold no activations, or no predictions where a loss is towards the predicted
            classes, or the CLIP cannot embed texts.
    """
    spec = cell.spec
    assert isinstance(spec, AlignSpec) and cell.clip is not None
    facts, clip = get_facts(cell, known), known.models.get(cell.clip)
    if clip is None:
        raise NotInspected(f"{cell.clip} is not inspected yet")
    tokens = find_stored(cell, facts, spec.sites)
    images = clip_images_plan(tokens[0].forward, clip)
    beside, inputs = [images], {"embeddings": images.digest}
    if predictions_read(cell) or any(settings.needs_classes for settings in spec.encoders()):
        predictions = find_predictions(cell)
        names = _class_names(cell, facts, predictions)
        texts = clip_texts_plan(tokens[0].forward, clip, names, spec.templates)
        beside.append(texts)
        inputs |= {"predictions": predictions.digest, "texts": texts.digest}
    encoders = [_plan(spec, facts, clip, site, settings, inputs) for site in tokens for settings in spec.encoders()]
    return (*beside, *encoders)


def _class_names(cell: Cell, facts: ModelFacts, predictions: StageSpec) -> list[str]:
    names = class_names(facts, predictions.params)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadSpec(
            f"stages.{cell.name}: {', '.join(twice[:5])} {'is' if len(twice) == 1 else 'are'} there twice among the classes, so "
            "no text says which is meant; rename one of each"
        )
    return names


def _plan(
    spec: AlignSpec, facts: ModelFacts, clip: ModelFacts, tokens: SiteTokens, settings: AlignSettings,
    inputs: dict[str, str],
) -> Plan:  # fmt: skip
    stage = StageSpec(
        kind="align",
        method=METHOD,
        subject=facts.model,
        output="encoder",
        params={
            "site": tokens.site,
            "pool": spec.pool,
            "clip": clip.model,
            "templates": templates_json(spec.templates),
            "align": settings.model_dump(mode="json"),
        },
        inputs={"activations": tokens.stage.digest, **inputs},
    )
    return Plan(
        stage=stage,
        rounds=(Round(name="train", rows=1, shard_rows=1),),
        # what one site gives is read once for all its variants
        worker=f"align {facts.model} {digest([stage.inputs, spec.pool])}",
        effort={
            "tokens": tokens.model_dump(mode="json"),
            "per_image": tokens.per_image(facts),
            "width": tokens.width(facts),
            "dim": clip.check_embeds(),
            "clip": clip_forward(tokens.forward, clip).model_dump(mode="json"),
            "keep_every": spec.keep_every,
        },
    )


def estimate(plan: Plan, known: Known) -> Estimate:
    """Steps of the map and of two similarity matrices, forward and backward; everything that is seen is in memory."""
    settings = settings_of(plan)
    rows, width, dim = planned_tokens(plan).forward.rows, int(str(plan.effort["width"])), int(str(plan.effort["dim"]))
    return Estimate(
        images=rows,
        flops=settings.epochs * rows * (6 * width * dim + 12 * settings.batch * dim),
        bytes=4 * width * dim,
        memory=4 * (4 * width * dim + 4 * settings.batch**2),
        worker_memory=LIBRARY_BYTES + rows * (width + dim) * 4,
    )
