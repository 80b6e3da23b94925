"""Twelve units of a demo model whose truth is made up, and methods that name them right or wrong as a test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from cluster.stores.base import Store
from jobs.evaluate.plan import make_plans
from jobs.protocol import Cell, Known
from miclip_core.zoo.load import inspect_model
from schemas.evaluate_specs import EvaluateSpec
from schemas.models import ModelFacts
from schemas.plans import Plan, StageSpec
from schemas.refs import ModelRef
from tests.made_up_descriptions import describe_stage, publish_rows, publish_scores

MODEL, CLIP = "demo:clip-p8", "demo:clip-p8-b"
SITE = "resid_post.3@patch"
CONCEPTS = ("red", "green", "circle", "star")
TRUTH = ["red", "red", "red", "green", "green", "green", "circle", "circle", "circle", "star"]
"""Of units 0 to 9; unit 10 is best at red but poor, and of unit 11 nothing is known."""
SOME_WRONG = [*TRUTH[:7], "star", "red", None, "star", "red"]
ALL_WRONG = ["green", "circle", "star", "red", "circle", "star", "red", "green", "star", "red", "red", "red"]
Names = Sequence[str | None]


@cache
def facts(model: str = MODEL) -> ModelFacts:
    return inspect_model(ModelRef.parse(model))


def known(files: Mapping[str, str] = {}, *models: str) -> Known:
    return Known({model: facts(model) for model in (MODEL, CLIP, *models)}, {}, files)


def plan(read: Sequence[Plan], known_facts: Known | None = None, model: str = MODEL, **spec: Any) -> Plan:
    """The plan of an evaluate stage that reads one stage, or several in this order."""
    reads = {f"stage{n}": (one,) for n, one in enumerate(read)}
    cell = Cell("judge", EvaluateSpec(reads=tuple(reads) or ("none",), **spec), model, clip=CLIP, reads=reads)
    (found,) = make_plans(cell, known_facts or known())
    return found


def publish_truth(store: Store, concepts: Sequence[str] = CONCEPTS, variant: str = "auroc", **stage: Any) -> Plan:
    """A stage of method auroc: units 0 to 9 tell their concept with .95, the others worse."""
    scores = [[0.95 if name == truth else 0.4 for name in concepts] for truth in TRUTH]
    return publish_scores(
        store, describe_stage(variant, concepts, MODEL, **stage), [*scores, [0.7] + [0.3] * (len(concepts) - 1)]
    )


def publish_names(
    store: Store, variant: str, names: Names, concepts: Sequence[str] = CONCEPTS, model: str = MODEL, **stage: Any
) -> Plan:
    """A stage that names unit u names[u]; of one concept lower units are found first."""
    scores = [[1 - unit / 1000 if said == name else None for name in concepts] for unit, said in enumerate(names)]
    return publish_scores(store, describe_stage(variant, concepts, model, **stage), scores)


def effects_stage(variant: str, seed: int | None = None, site: str = "resid_post.3@all", **params: Any) -> StageSpec:
    params = {
        "site": site, "unit_kind": "neurons", "method": variant.split()[0], "variant": variant, "seed": seed,
        "error": "keep", "changes": [{"op": "scale", "beta": 0.0}], **params,
    }  # fmt: skip
    return StageSpec(kind="intervene", method=1, subject=MODEL, output="effects", params=params)


def publish_effects(store: Store, stage: StageSpec, counts: Mapping[str, Sequence[int]], beta: float = 0.0) -> Plan:
    """Class -> images, right without and with the change; off the class: images, right without and with it."""
    about = {name: stage.params[name] for name in ("site", "unit_kind", "method", "variant", "seed")}
    change = {"op": "scale", "beta": beta, "error_mode": stage.params["error"], "positions": "all", "units": [0]}
    rows = [
        {
            **about, **change, "class_id": number, "class_name": name, "n": n, "correct_clean": ref, "correct_ref": ref,
            "correct_edit": edit, "offclass_n": off, "offclass_ref": off_ref, "offclass_edit": off_edit,
        }
        for number, (name, (n, ref, edit, off, off_ref, off_edit)) in enumerate(counts.items())
    ]  # fmt: skip
    return publish_rows(store, stage, {"intervention_eval": rows})
