"""Publishes tables about named units with made-up numbers, as the kinds that describe, change, trace and judge would have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.stores.base import Store
from schemas.plans import StageSpec
from tests.made_up_saes import Rows, publish_rows, stage_of

MODELS = ("demo:clip-p8", "demo:vit-p8")
SITE = "resid_post.3@patch"
CONCEPTS = ("red", "blue", "green", "circle", "star", "square", "stripes", "dots")
GROUPS = {"colour": CONCEPTS[:3], "shape": CONCEPTS[3:6], "texture": CONCEPTS[6:]}
METHODS = {"miclip in+out": 0.9, "clip_dissect soft_wpmi": 0.7, "netdissect": 0.4, "act_values": 0.6, "auroc": 1.0}
"""How often each method gives a unit its true name."""
TAU = 3
GRID = 8
LAYERS = (0, 1, 2, 3)

Tables = dict[str, list[dict[str, Any]]]


def truth_of(unit: int) -> int:
    """The concept that a unit stands for."""
    return unit % len(CONCEPTS)


def publish_units(
    store: Store, images: Rows, sae: str | None = None, units: int = 24, seeds: int = 1
) -> list[StageSpec]:
    """Everything that the sections about units show, for both models; `sae` adds features of one SAE of the first."""
    stages = []
    for m, model in enumerate(MODELS):
        for of in (None, sae) if m == 0 and sae else (None,):
            place = {"model": model, "site": SITE, "sae": of, "unit_kind": "features" if of else "neurons"}
            stages += _publish_place(store, place, images, units, seeds)
        stages += _publish_model(store, model, images)
    return stages


def reading(stage: StageSpec, inputs: Mapping[str, str]) -> StageSpec:
    """The same stage with these inputs, and so with another digest."""
    return StageSpec(**{**stage.model_dump(), "inputs": dict(inputs)})


def _publish_place(store: Store, place: Mapping[str, Any], images: Rows, units: int, seeds: int) -> list[StageSpec]:
    stages: list[StageSpec] = []

    def add(kind: str, output: str, tables: Tables, inputs: Mapping[str, str] = {}, **params: Any) -> StageSpec:
        stage = stage_of(kind, output, place["model"], site=place["site"], sae=place["sae"], **params)
        stages.append(reading(stage, inputs))
        publish_rows(store, stages[-1], tables)
        return stages[-1]

    for variant in METHODS:
        for seed in range(seeds) if variant.startswith("miclip") else (None,):
            keys = {**place, "variant": variant, "seed": seed}
            described = add(
                "describe",
                variant.partition(" ")[0],
                make_names(keys, units),
                concepts=list(CONCEPTS),
                variant=variant,
                seed=seed,
            )
            if variant != "auroc":
                add("intervene", "effects", make_effects(keys), {"units": described.digest}, variant=variant, seed=seed)
    if place["sae"] is None:
        add("extract", "top_images", {"top_images": make_top_images(place, units, images)})
    else:
        keys = {**place, "variant": "miclip in+out", "seed": 0}
        add("attention_maps", "maps", {"attention_maps": make_maps(keys, images)})
    keys = {**place, "variant": "miclip in+out", "seed": 0}
    add("geometry", "geometry", make_geometry(keys, units))
    judged = [stage for stage in stages if stage.kind in ("describe", "intervene")]
    add("evaluate", "scores", make_scores(place), {f"{s.kind}.{n}": s.digest for n, s in enumerate(judged)})
    return stages


def _publish_model(store: Store, model: str, images: Rows) -> list[StageSpec]:
    stages = []
    for layer in LAYERS:
        for loss in ("in+out", "out"):
            stage = stage_of("align", "encoder", model, layer=layer, loss=loss)
            publish_rows(store, stage, make_encoder(stage.digest, model, f"resid_post.{layer}@cls", loss))
            stages.append(stage)
    stage = stage_of("trace_errors", "traces", model)
    publish_rows(store, stage, make_traces(model, images))
    return [*stages, stage]


def _with_method(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The method is the first word of a variant."""
    return {**keys, "method": keys["variant"].partition(" ")[0]}


# ---------------------------------------------------------------- names


def make_names(keys: Mapping[str, Any], units: int) -> Tables:
    """Names and lists of one method that is right about some units; unit 5 is dead to it."""
    keys = _with_method(keys)
    generator = np.random.default_rng([list(METHODS).index(keys["variant"]), keys["seed"] or 0, len(keys["model"])])
    right = METHODS[keys["variant"]]
    scores = generator.uniform(0, 0.5, (units, len(CONCEPTS)))
    for unit in range(units):
        named = truth_of(unit) if generator.uniform() < right else int(generator.integers(len(CONCEPTS)))
        scores[unit, named] += 0.5
    rows = []
    for unit in range(units):
        order = np.argsort(-scores[unit])
        rows += [_named(keys, "describe", unit, int(c), rank, scores) for rank, c in enumerate(order[:TAU])]
    alive = [unit for unit in range(units) if unit != 5]
    for concept in range(len(CONCEPTS)):
        order = sorted(alive, key=lambda u: -scores[u, concept])
        rows += [_named(keys, "localise", unit, concept, rank, scores) for rank, unit in enumerate(order[:TAU])]
    description = {**keys, "similarity": None, "unit_mode": None, "encoder": None, "clip": "demo:clip-p8",
                   "templates": None, "pool": "mean", "tau": TAU, "concepts": len(CONCEPTS), "units": units, "units_dead": 1,
                   "units_described": units - 1, "concepts_located": len(CONCEPTS), "images": 24}  # fmt: skip
    return {"unit_concepts": rows, "descriptions": [description]}


def _named(
    keys: Mapping[str, Any], direction: str, unit: int, concept: int, rank: int, scores: np.ndarray
) -> dict[str, Any]:
    return {**keys, "direction": direction, "unit": unit, "concept_id": concept, "concept": CONCEPTS[concept], "rank": rank,
            "score": float(scores[unit, concept]), "is_dead": unit == 5}  # fmt: skip


def make_top_images(place: Mapping[str, Any], units: int, images: Rows) -> list[dict[str, Any]]:
    """Nine images of every neuron, with the patch of its largest activation."""
    return [
        {"model": place["model"], "site": place["site"], "unit": unit, "rank": rank, "value": 5.0 - 0.4 * rank,
         "token": (unit * 7 + rank * 3) % GRID**2, **_image(images[(unit * 5 + rank * 3) % len(images)])}
        for unit in range(units) for rank in range(9)
    ]  # fmt: skip


def _image(image: Mapping[str, Any]) -> dict[str, Any]:
    return {"image_id": image["image_id"], "image_index": image["image_index"]}


# ---------------------------------------------------------------- effects, scores, tests


def make_effects(keys: Mapping[str, Any]) -> Tables:
    """Methods that are right more often do more; class 0 loses everything if its units are removed."""
    keys = _with_method(keys)
    right = METHODS[keys["variant"]]
    generator = np.random.default_rng(round(right * 100) + (keys["seed"] or 0))
    rows, summary = [], []
    for beta, size in ((2.0, 6.0), (0.0, -40.0)):
        change = {"op": "scale", "beta": beta, "error_mode": "keep", "positions": "all"}
        changes = []
        for c, name in enumerate(CONCEPTS):
            edit = 16 + (round(size / 5 * right + generator.normal(0, 0.4)) if c else (-16 if beta == 0 else 4))
            edit = min(max(edit, 0), 20)
            changes.append(100 * (edit - 16) / 20)
            rows.append({**keys, **change, "class_id": c, "class_name": name, "units": [c, c + 8], "n": 20, "correct_clean": 16,
                         "correct_ref": 16, "correct_edit": edit, "offclass_n": 20, "offclass_ref": 16, "offclass_edit": 15})  # fmt: skip
        mean, spread = float(np.mean(changes)), float(np.std(changes)) / 2
        summary.append({**keys, **change, "classes": len(CONCEPTS), "n": 160, "acc_clean": 0.8, "acc_ref": 0.8, "dacc": mean,
                        "dacc_low": mean - spread, "dacc_high": mean + spread, "p_value": 0.01, "test": "wilcoxon_exact",
                        "n_pairs": len(CONCEPTS), "offclass_dacc": -5.0, "offclass_low": -7.0, "offclass_high": -3.5})  # fmt: skip
    return {"intervention_eval": rows, "intervention_summary": summary}


def make_scores(place: Mapping[str, Any]) -> Tables:
    """Scores that follow how often methods are right; the best beats netdissect and nobody else."""
    scores, tests = [], []
    judged = [v for v in METHODS if v != "auroc"]
    for measure, factor in (("accuracy", 1.0), ("clip_score", 0.95), ("precision", 0.6)):
        for variant in judged:
            value = METHODS[variant] * factor
            scores.append({**_with_method({**place, "variant": variant}), "seed": 0 if variant.startswith("miclip") else None, "measure": measure,
                           "n": 20, "value": value, "low": value - 0.1, "high": min(value + 0.1, 1.0),
                           "ceiling": 0.75 if measure == "precision" else None})  # fmt: skip
    for measure in ("accuracy", "clip_score", "precision", "dacc x2 keep", "dacc x0 keep"):
        for i, variant in enumerate(judged):
            for against in judged[i + 1 :]:
                sign = -1 if measure == "dacc x0 keep" else 1
                real = {variant, against} == {"miclip in+out", "netdissect"}
                difference = sign * (METHODS[variant] - METHODS[against])
                tests.append({**place, "measure": measure, "variant": variant, "against": against, "seeds": 1, "sd_seed": None,
                              "n_pairs": 20, "difference": difference, "low": difference - 0.2, "high": difference + 0.2,
                              "test": "wilcoxon_exact", "p_value": 0.0004 if real else 0.2, "p_holm": 0.012 if real else 1.0})  # fmt: skip
    return {"method_scores": scores, "method_tests": tests}


# ---------------------------------------------------------------- encoders, traces, maps, geometry


def make_encoder(stage: str, model: str, site: str, loss: str, steps: int = 30) -> Tables:
    """A training that gets a little better."""
    both = loss == "in+out"
    start = 6.0 * (2 if both else 1)
    losses = start - 0.5 * (1 - np.exp(-np.arange(steps) / 8))
    metrics = [{"model": model, "site": site, "step": i, "loss": value, "loss_out": value / 2 if both else value,
                "loss_in": value / 2 if both else None, "acc_row_out": 0.5, "acc_row_in": 0.3 if both else None, "logit_scale": 1.0}
               for i, value in enumerate(losses.tolist())]  # fmt: skip
    row = {"model": model, "site": site, "encoder": f"align:{stage}", "clip": "demo:clip-p8", "pool": "mean", "templates": json.dumps(["{}"]),
           "d": 96, "dim": 64, "classes": 13, "images": 2400, "images_held_out": 0, "w_out": 1.0, "w_in": 1.0 if both else 0.0,
           "logit_scale": 1.0, "bias": False, "standardise": False, "lr": 1e-4, "batch": 256, "seed": 0, "steps": steps,
           "final_loss": float(losses[-1]), "final_out": float(losses[-1]) / 2, "final_in": None, "zero_channels": []}  # fmt: skip
    return {"align_metrics": metrics, "alignments": [row]}


def make_traces(model: str, images: Rows) -> Tables:
    """Every third image is wrong and loses its class at layer 2 or 3 for good; of the right ones every fifth has a false alarm."""
    keys = _with_method({"model": model, "variant": "miclip in+out", "seed": 0})
    traces: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    for i, image in enumerate(images):
        truth, wrong = i % len(CONCEPTS), (i + 1) % len(CONCEPTS)
        is_error = i % 3 == 0
        cross = 2 + i % 2 if is_error else 2 if i % 5 == 1 else None
        lead = (
            np.array([0.05, 0.2, 0.25, 0.3])
            if cross is None
            else np.where(np.arange(4) < cross, 0.2, -0.1 if is_error else 0.1)
        )
        if cross is not None and not is_error:
            lead[2] = -0.05
        traces.append({**keys, **_image(image), "truth_id": truth, "truth": CONCEPTS[truth], "predicted_id": wrong if is_error else truth,
                       "predicted": CONCEPTS[wrong if is_error else truth], "wrong_id": wrong, "wrong": CONCEPTS[wrong],
                       "is_error": is_error, "peak_layer": int(np.argmax(lead)), "max_lead": float(lead.max()), "cross_layer": cross,
                       "persistent": is_error})  # fmt: skip
        for layer, value in zip(LAYERS, lead.tolist(), strict=True):
            for role, label, cosine in (("truth", truth, 0.3 + value / 2), ("wrong", wrong, 0.3 - value / 2)):
                layers.append({"model": model, **_image(image), "layer": layer, "site": f"resid_post.{layer}@cls", "label_role": role,
                               "label_id": label, "label": CONCEPTS[label], "cosine": cosine})  # fmt: skip
    return {
        "error_traces": traces,
        "layer_trace": layers,
        "trace_summary": [_summary(keys, traces, role) for role in ("wrong", "right")],
    }


def _summary(keys: Mapping[str, Any], traces: Sequence[dict[str, Any]], images_are: str) -> dict[str, Any]:
    rows = [t for t in traces if t["is_error"] == (images_are == "wrong")]
    crossings = [t["cross_layer"] for t in rows if t["cross_layer"] is not None]
    return {**keys, "images_are": images_are, "images": len(rows), "unknown": 0, "never_led": 0, "crossed": len(crossings),
            "persistent": sum(t["persistent"] for t in rows), "crossed_share": len(crossings) / len(rows), "layers": list(LAYERS),
            "peaks": [sum(t["peak_layer"] == x for t in rows) for x in LAYERS],
            "crossings": [crossings.count(x) for x in LAYERS]}  # fmt: skip


def make_maps(keys: Mapping[str, Any], images: Rows) -> list[dict[str, Any]]:
    """Two images of every concept; the features' map has twice the mass of the area."""
    keys = _with_method(keys)
    rows = []
    for c, concept in enumerate(CONCEPTS):
        for n in range(2):
            image = images[(c * 2 + n) % len(images)]
            for shows, width in (("model", 30.0), ("features", 4.0)):
                y, x = np.mgrid[:GRID, :GRID]
                saliency = np.exp(-((y - 3) ** 2 + (x - 2 - c % 4) ** 2) / width)
                rows.append({**keys, **_image(image), "uri": image["uri"], "concept_id": c, "concept": concept, "shows": shows, "layer": 4,
                             "units": [c, c + 8], "grid_h": GRID, "grid_w": GRID, "saliency": (saliency / saliency.sum()).ravel().tolist(),
                             "entropy": 3.1, "truth_mass": 0.4 if shows == "features" else 0.25, "truth_area": 0.2,
                             "is_hit": shows == "features"})  # fmt: skip
    return rows


def make_geometry(keys: Mapping[str, Any], units: int) -> Tables:
    """Three groups around three places; unit 5 has no direction."""
    keys = _with_method(keys)
    generator = np.random.default_rng(3)
    points = []
    for unit in range(units):
        concept = CONCEPTS[truth_of(unit)]
        group = next(g for g, members in GROUPS.items() if concept in members)
        at = np.array([[0, 0], [9, 1], [4, 8]])[list(GROUPS).index(group)] + generator.normal(0, 1.2, 2)
        x, y = (None, None) if unit == 5 else at.tolist()
        points.append({**keys, "unit": unit, "group": group, "concept": concept, "x": x, "y": y})
    summary = {**keys, "groups": 3, "units": units - 1, "neighbours": 5, "silhouette": 0.31, "silhouette_p": 0.001, "purity": 0.82,
               "purity_p": 0.001, "purity_chance": 0.36, "concepts_ungrouped": 2, "concepts_ambiguous": 0, "units_shared": 1}  # fmt: skip
    return {"geometry_points": points, "geometry_summary": [summary]}
