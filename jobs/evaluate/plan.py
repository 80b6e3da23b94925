"""Evaluate cells to plans: one stage per model over all describe and intervene stages that are read; loads no torch."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import JsonValue

from jobs.activations import Forward, checkpoint, get_facts, model_digest
from jobs.described import Described, find_described
from jobs.evaluate.compared import (
    Changed,
    Intervened,
    Work,
    find_changed,
    group_methods,
    refuse_twice,
    refuse_unlike,
    why_nothing_judged,
)
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, Known
from miclip_core.extras import SENTENCES
from schemas.errors import BadSpec, NotInspected
from schemas.evaluate_specs import EvaluateSpec
from schemas.models import ModelFacts
from schemas.plans import Plan, Round, StageSpec

METHOD = 1
TABLES = {"scores": {"judge": ("description_eval", "method_scores", "method_tests")}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"scores": ()}


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The one plan of a model.

    Raises:
        NotInspected: the model or the CLIP is not known yet.
        BadSpec: nothing is read that can be judged, or something is there twice.
    """
    spec = cell.spec
    assert isinstance(spec, EvaluateSpec) and cell.clip is not None
    facts, clip = get_facts(cell, known), known.models.get(cell.clip)
    if clip is None:
        raise NotInspected(f"{cell.clip} is not inspected yet")
    if not clip.has_text:
        raise BadSpec(
            f"stages.{cell.name}.clip: {clip.model} has no text tower, so it cannot say how alike two texts are; name a CLIP"
        )
    described, changed = find_described(cell), find_changed(cell)
    refuse_twice(cell.name, described, changed)
    refuse_unlike(cell.name, changed)
    classes = tuple(name.strip() for name in facts.classes or ()) if spec.truth == "classes" else ()
    concepts = tuple(dict.fromkeys([*(d.concepts for d in described), classes]))
    groups, unjudged = group_methods(spec, classes, described, concepts)
    if not groups and not changed:
        raise BadSpec(f"stages.{cell.name}.reads: {why_nothing_judged(spec, facts, described)}")
    work = Work(
        concepts=concepts,
        groups=groups,
        unjudged=unjudged,
        changed=tuple(
            Changed(
                stage=e.stage.digest,
                **e.units._asdict(),
                method=e.variant.method,
                variant=e.variant.name,
                seed=e.variant.seed,
            )
            for e in changed
        ),
        clip=_text_pass(clip),
        sentences=spec.sentences,
    )
    stage = StageSpec(
        kind="evaluate",
        method=METHOD,
        subject=facts.model,
        output="scores",
        params=_params(spec, clip, known),
        inputs=_inputs(facts, clip, described, changed),
    )
    worker = f"evaluate {facts.model} {stage.digest}"
    rounds = (Round(name="judge", rows=1, shard_rows=1),)
    return (Plan(stage=stage, rounds=rounds, worker=worker, effort=work.model_dump(mode="json")),)


def _params(spec: EvaluateSpec, clip: ModelFacts, known: Known) -> dict[str, JsonValue]:
    """Of a folder of sentence encoders its content counts, not where it is."""
    sentences = [known.files[folder] for folder in spec.folders]
    return {
        "truth": spec.truth,
        "min_truth": spec.min_truth if spec.truth == "auroc" else None,
        "clip": clip.model,
        "sentences": sentences[0] if sentences else None,
        "random_seed": spec.seed,
    }


def _inputs(
    facts: ModelFacts, clip: ModelFacts, described: Iterable[Described], changed: Iterable[Intervened]
) -> dict[str, str]:
    """Numbered in the order that they have of their own, so that the one in which they are read does not matter."""
    inputs = {"model": model_digest(facts), "clip": model_digest(clip)}
    inputs |= {f"describe.{number}": one.stage.digest for number, one in enumerate(described)}
    return inputs | {f"intervene.{number}": one.stage.digest for number, one in enumerate(changed)}


def _text_pass(clip: ModelFacts) -> Forward:
    """The CLIP whose text tower is opened; no image goes through it."""
    return Forward(
        model=clip.model, inputs={"model": model_digest(clip)}, params={"dtype": "fp32"}, effort=checkpoint(clip)
    )


def estimate(plan: Plan, known: Known) -> Estimate:
    """What the worker holds: libraries, the CLIP and a sentence encoder; the tests take seconds."""
    clip = known.models.get(str(plan.stage.params["clip"]))
    folder = plan.effort["sentences"]
    held = (4 * clip.params if clip else 0) + known.weights.get(str(folder).removeprefix("file:"), 0)
    return Estimate(worker_memory=LIBRARY_BYTES + held, note="" if folder is None else SENTENCES.note)
