"""Publishes SAE tables with made-up numbers, as training and description would have, and a run that stands for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.ledger import publish
from cluster.parquet import PartEncoder, sha256
from cluster.runs import RunState, RunTables, StageState, save_state, save_tables
from cluster.stores.base import Store
from schemas import layout
from schemas.plans import DoneMarker, Plan, Round, StageSpec, StoredPart
from schemas.tables import get_table

MODEL, SITE = "demo:clip-p8", "resid_post.3@patch"
GRID = 8
CONCEPTS = ("colour=red", "colour=blue", "shape=star", "texture=stripes")

Rows = Sequence[Mapping[str, Any]]


def publish_rows(store: Store, stage: StageSpec, tables: Mapping[str, Rows]) -> str:
    """Store and publish rows of some tables as one stage with one shard; returns its digest."""
    plan = Plan(stage=stage, rounds=(Round(name="map", rows=1, shard_rows=1),), worker="made up")
    parts = []
    for n, (name, rows) in enumerate(tables.items()):
        encoder = PartEncoder(get_table(name))
        full = [{"stage": stage.digest, **row} for row in rows]
        for batch in pa.Table.from_pylist(full, schema=get_table(name).schema).to_batches():
            encoder.add(batch)
        for part in encoder.finish():
            key, data = layout.part_key(name, stage, next(plan.shards(0)), n), part.read()
            store.create(key, data)
            parts.append(StoredPart(table=name, key=key, rows=part.rows, bytes=len(data), sha256=sha256(data)))
    marker = DoneMarker(shard=0, round=0, parts=tuple(parts))
    store.create(layout.done_key(stage.digest, 0), marker.canonical_json().encode())
    publish(store, plan, tables)
    return stage.digest


def save_run(store: Store, run: str, stages: Iterable[StageSpec], **changes: Any) -> RunState:
    """A finished run that stands for these stages; `changes` are fields of its state."""
    pipeline, _, number = run.rpartition("-")
    states = tuple(
        StageState(digest=s.digest, cell=f"{s.kind}/{s.subject}", kind=s.kind, subject=s.subject, output=s.output,
                   state="published", shards_done=1, shards=1)
        for s in stages
    )  # fmt: skip
    state = RunState(run=run, pipeline=pipeline, number=int(number), status="DONE", seconds=12.5, stages=states)
    state = state.model_copy(update=changes)
    store.create(layout.run_key(run, "spec.yaml"), b"kind: pipeline\n")
    save_state(store, state)
    digests = {s.cell: tuple(t.digest for t in state.stages if t.cell == s.cell) for s in state.stages}
    save_tables(store, RunTables(run=run, pipeline=pipeline, stages=digests))
    return state


def stage_of(kind: str, output: str, subject: str = MODEL, **params: Any) -> StageSpec:
    """A stage whose digest follows from what is given."""
    return StageSpec(kind=kind, method=1, subject=subject, output=output, params=params)


def make_metrics(steps: int, quality: float, seed: int) -> list[dict[str, Any]]:
    """A training that gets better: FVU falls towards `quality`, dead latents come and go."""
    generator = np.random.default_rng(seed)
    decay = quality + (1 - quality) * np.exp(-np.arange(steps) / max(steps / 8, 1))
    noise = np.exp(generator.normal(0, 0.05, steps))
    dead = np.round(20 * np.exp(-(((np.arange(steps) - steps / 3) / max(steps / 5, 1)) ** 2))).astype(int)
    return [
        {"model": MODEL, "site": SITE, "step": i, "tokens": 1024 * (i + 1), "loss": decay[i] * noise[i] * 1.02,
         "mse": decay[i] * noise[i], "aux": 0.5, "fvu": decay[i] * noise[i], "l0": 10.0, "dead": int(dead[i]),
         "threshold": None if i < 10 else 0.3, "lr": 2e-3, "grad_norm": 0.1}
        for i in range(steps)
    ]  # fmt: skip


def make_summary(
    sae: str, arch: str, latents: int, k: int, seed: int, fvu: float, l0: float, steps: int
) -> dict[str, Any]:
    """One SAE that recovers most of the loss."""
    return {"model": MODEL, "site": SITE, "sae": sae, "source": "miclip", "arch": arch, "d": 96, "latents": latents, "k": k,
            "l1": None, "lr": 2e-3, "seed": seed, "steps": steps, "tokens": 1024 * steps, "norm_scale": 11.3, "gamma": 1.2,
            "dead_at_end": 3, "images": 120, "measured_tokens": 7680, "fvu": fvu, "fvu_centred": fvu * 0.99,
            "explained_variance": 1 - fvu, "l0": l0, "l1_norm": 31.0, "cosine": 0.93, "l2_ratio": 0.95, "relative_bias": 1.01,
            "dead_fraction": 0.05, "loss_kind": "zero_shot", "loss_original": 0.41, "loss_spliced": 0.52, "loss_zero": 2.3,
            "loss_mean": 2.1, "recovered_zero": 0.942, "recovered_mean": 0.935, "kl_spliced": 0.08, "top1_original": 0.91,
            "top1_spliced": 0.88, "embedding_cosine": 0.97, "config": json.dumps({"arch": arch})}  # fmt: skip


def make_features(sae: str, latents: int, images: Rows, seed: int, top: int = 9) -> dict[str, list[dict[str, Any]]]:
    """Rows of sae_features, sae_top_images and sae_selectivity; every tenth latent is dead."""
    generator = np.random.default_rng(seed)
    keys = {"model": MODEL, "site": SITE, "sae": sae}
    tables: dict[str, list[dict[str, Any]]] = {"sae_features": [], "sae_top_images": [], "sae_selectivity": []}
    for feature in range(latents):
        dead = feature % 10 == 9
        largest = float(generator.uniform(1, 12))
        tables["sae_features"].append({**keys, **_feature(feature, latents, dead, largest, generator)})
        if dead:
            continue
        for rank in range(min(top, len(images))):
            tables["sae_top_images"].append({**keys, **_top_image(feature, rank, largest, images, generator)})
        tables["sae_selectivity"] += [{**keys, **row} for row in _selectivity(feature, generator)]
    for concept in CONCEPTS:
        rows = [row for row in tables["sae_selectivity"] if row["concept"] == concept]
        for rank, row in enumerate(sorted(rows, key=lambda r: (-r["auroc"], r["feature"]))):
            row["rank_in_concept"] = rank if rank < 5 else None
    return tables


def _feature(feature: int, latents: int, dead: bool, largest: float, generator: np.random.Generator) -> dict[str, Any]:
    density = 0.0 if dead else float(10 ** generator.uniform(-4, -0.5))
    histogram = np.zeros(64, int)
    if not dead:
        histogram[28:40] = generator.integers(0, 400, 12)
        histogram[34] = 900
    near = sorted({(feature + step) % latents for step in (1, 2, 7)} - {feature})
    active = {"mean": largest / 3, "std": 0.5, "min_pos": 0.01, "p50": largest / 4, "p90": largest / 2, "p99": largest * 0.9,
              "max": largest, "skewness": 8.0, "kurtosis": float(generator.uniform(10, 900)), "clarity": 0.6,
              "clarity_baseline": 0.3, "clarity_z": 5.0, "monosemanticity": float(generator.uniform(0.3, 0.95))}  # fmt: skip
    return {"feature": feature, "n_active": round(density * 15360), "images_active": 0 if dead else 20, "density": density,
            "is_dead": dead, "histogram": histogram.tolist(), "enc_dec_cos": float(generator.uniform(0.5, 0.99)),
            "decoder_norm": 1.0, "b_enc": -0.1, "neighbours": near, "neighbour_cos": [0.8, 0.5, 0.4][: len(near)],
            **(dict.fromkeys(active) if dead else active)}  # fmt: skip


def _top_image(feature: int, rank: int, largest: float, images: Rows, generator: np.random.Generator) -> dict[str, Any]:
    image = images[(feature * 5 + rank * 3) % len(images)]
    value = largest * (1 - 0.06 * rank)
    row, column = generator.integers(1, GRID - 1, 2)
    rows, columns = np.mgrid[:GRID, :GRID]
    bump = value * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 2.5)
    bump[bump < 0.05 * value] = 0
    return {"feature": feature, "rank": rank, "image_id": image["image_id"], "image_index": image["image_index"],
            "uri": image["uri"], "value": value, "token": int(row * GRID + column), "image_mean": float(bump.mean()),
            "map": bump.ravel().tolist(), "grid_h": GRID, "grid_w": GRID}  # fmt: skip


def _selectivity(feature: int, generator: np.random.Generator) -> list[dict[str, Any]]:
    aurocs = np.sort(generator.beta(6, 3, len(CONCEPTS)))[::-1]
    order = generator.permutation(len(CONCEPTS))
    return [
        {"feature": feature, "level": "patch", "concept": CONCEPTS[c], "n_pos": 300, "n": 15360, "auroc": float(aurocs[rank]),
         "best_f1": float(aurocs[rank] * 0.8), "f1_threshold": 0.5, "precision": 0.8, "recall": 0.7,
         "rank_in_feature": rank, "rank_in_concept": None}
        for rank, c in enumerate(order)
    ]  # fmt: skip


def publish_sweep(store: Store, images: Rows, latents: int = 60, steps: int = 300, seeds: int = 2) -> list[StageSpec]:
    """SAEs of two kinds, two k and some seeds at one site, each with its features; returns their stages."""
    stages = []
    for number, (arch, k, seed) in enumerate(
        (a, k, s) for a in ("topk", "batchtopk") for k in (8, 16) for s in range(seeds)
    ):
        train = stage_of("train_sae", "sae", arch=arch, latents=latents, k=k, seed=seed, site=SITE)
        sae, fvu = f"sae:{train.digest}", 0.3 / (k / 8) ** 0.6 + 0.01 * seed + (0.02 if arch == "topk" else 0)
        summary = make_summary(sae, arch, latents, k, seed, fvu, k * (1 if arch == "topk" else 0.93), steps)
        rows = {"sae_metrics": make_metrics(steps, fvu, number), "sae_summary": [{**summary}]}
        publish_rows(store, train, rows)
        described = stage_of("sae_features", "features", sae=sae)
        publish_rows(store, described, make_features(sae, latents, images, number))
        stages += [train, described]
    return stages
