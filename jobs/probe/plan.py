"""Probe cells to plans: one stage of predictions per model; loads no torch."""

from __future__ import annotations

from jobs.activations import get_facts
from jobs.memory import LIBRARY_BYTES
from jobs.protocol import Cell, Estimate, Known
from jobs.sae_tokens import find_stored, planned_tokens
from schemas.errors import BadSpec
from schemas.plans import Plan, Round, StageSpec
from schemas.probe_specs import ProbeSpec

METHOD = 1
TABLES: dict[str, dict[str, tuple[str, ...]]] = {"predictions": {"fit": ("predictions", "probe_summary")}}
ARTIFACTS: dict[str, tuple[str, ...]] = {"predictions": ()}
_STEPS = 200
"""Passes over the images that a fit takes, roughly."""


def make_plans(cell: Cell, known: Known) -> tuple[Plan, ...]:
    """The probe of one model.

    Raises:
        NotInspected: the model is not known yet.
        BadSpec: the stages that are read hold no activations, or those of several sites of which none is chosen.
        UnknownSite: the model has no such site.
    """
    spec = cell.spec
    assert isinstance(spec, ProbeSpec)
    facts = get_facts(cell, known)
    stored = {tokens.stage.digest: tokens for tokens in find_stored(cell, facts, spec.sites)}
    if len(stored) != 1:
        there = ", ".join(tokens.site for tokens in stored.values())
        raise BadSpec(
            f"stages.{cell.name}.sites: found activations of {facts.model} at {there}; expected those of one site; give one, "
            "and a probe stage for each other"
        )
    ((digest, tokens),) = stored.items()
    forward = tokens.forward
    stage = StageSpec(
        kind="probe",
        method=METHOD,
        subject=facts.model,
        output="predictions",
        params={
            "site": tokens.site,
            "pool": spec.pool,
            "rows": forward.rows,
            "labels_from": spec.labels_from,
            "classes": list(spec.classes),
            "l2": spec.l2,
            "folds": spec.folds,
            "k": spec.predictions_k,
            "seed": spec.seed,
        },
        inputs={"activations": digest, "labels": forward.index, "images": forward.inputs["images"]},
    )
    return (
        Plan(
            stage=stage,
            rounds=(Round(name="fit", rows=1, shard_rows=1),),
            worker=f"probe {facts.model} {digest}",
            effort={
                "tokens": tokens.model_dump(mode="json"),
                "per_image": tokens.per_image(facts),
                "width": tokens.width(facts),
            },
        ),
    )


def estimate(plan: Plan, known: Known) -> Estimate:
    """Passes of one fit per fold, and all activations in memory as they are stored, as they are fitted, and once more."""
    classes, params = plan.stage.params["classes"], plan.stage.params
    assert isinstance(classes, list)
    rows, width, folds = planned_tokens(plan).forward.rows, int(str(plan.effort["width"])), int(str(params["folds"]))
    return Estimate(
        images=rows,
        flops=4 * _STEPS * (folds + 1) * rows * width * len(classes),
        bytes=20 * rows * min(int(str(params["k"])), len(classes)),
        worker_memory=LIBRARY_BYTES + 24 * rows * width,
    )
