"""Publishes pages of made-up units, as the explorer kind would have, any number of them quickly."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cluster.ledger import publish
from cluster.parquet import PartEncoder, sha256
from cluster.stores.base import Store
from schemas import layout
from schemas.plans import DoneMarker, Plan, Round, StageSpec, StoredPart
from schemas.tables import TABLES

COLOURS = ("red", "blue", "green", "yellow", "pink")
SHAPES = ("circle", "star", "heart", "ring", "square", "cross", "triangle")
SAE = "5ae" + "0" * 17
BATCH = 4096
GRID = 4


def explorer_stage(
    model: str, site: str = "resid_post.3@patch", sae: str | None = SAE, has_map: bool = True, **beside: str
) -> StageSpec:
    """What the stage of one set of units is called; `beside` are digests of what else it reads."""
    inputs = {
        "units": "f",
        "index": "i",
        **({"sae": sae} if sae else {}),
        **({"map.0": "m"} if has_map else {}),
        **beside,
    }
    params: dict[str, Any] = {"site": site, "unit_kind": "features" if sae else "neurons"}
    return StageSpec(kind="explorer", method=1, subject=model, output="explorer", params=params, inputs=inputs)


def text_of(unit: int) -> str:
    """Unit 0 is "a red circle", and every colour comes with every shape in turn."""
    return f"a {COLOURS[unit % len(COLOURS)]} {SHAPES[unit % len(SHAPES)]}"


def strip(tiles: int, side: int) -> bytes:
    """A JPEG of grey tiles, each lighter than the one before."""
    picture = Image.new("RGB", (tiles * side, side))
    for n in range(tiles):
        picture.paste((20 * n + 20,) * 3, (n * side, 0, (n + 1) * side, side))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return out.getvalue()


def publish_units(
    store: Store, stage: StageSpec, n: int, partners: dict[int, list[dict[str, Any]]] | None = None
) -> StageSpec:
    """n units, every tenth of them dead, with a place on a map and with partners where they are given."""
    plan = Plan(stage=stage, rounds=(Round(name="pages", rows=1, shard_rows=1),), worker="made up")
    (shard,) = plan.all_shards()
    parts = []
    for table, batches in (("explorer_features", _pages), ("explorer_index", _index)):
        encoder = PartEncoder(TABLES[table])
        for start in range(0, n, BATCH):
            rows = list(batches(stage, range(start, min(n, start + BATCH)), partners or {}))
            encoder.add(pa.RecordBatch.from_pylist(rows, schema=TABLES[table].schema))
        for number, part in enumerate(encoder.finish()):
            key, data = layout.part_key(table, stage, shard, number), part.read()
            store.create(key, data)
            parts.append(StoredPart(table=table, key=key, rows=part.rows, bytes=len(data), sha256=sha256(data)))
    marker = DoneMarker(shard=0, round=0, parts=tuple(parts))
    store.create(layout.done_key(stage.digest, 0), marker.canonical_json().encode())
    publish(store, plan, ("explorer_features", "explorer_index"))
    return stage


def _same(stage: StageSpec) -> dict[str, Any]:
    sae = f"sae:{stage.inputs['sae']}" if "sae" in stage.inputs else None
    kind = str(stage.params["unit_kind"])
    return {"stage": stage.digest, "model": stage.subject, "site": stage.params["site"], "sae": sae, "unit_kind": kind}


def _pages(stage: StageSpec, units: range, partners: dict[int, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    thumbnails, cover = strip(3, 64), strip(3, 48)
    image = {"id": "0" * 32, "words": "red · 1.png", "width": 64, "height": 48, "value": 2.0, "seen": [0, 0, 1, 1]}
    maps = bytes(np.arange(3 * GRID * GRID, dtype=np.uint8) * 5)
    for unit in units:
        is_dead = unit % 10 == 9
        names = [
            {
                "method": "miclip",
                "variant": "miclip in+out seed 0",
                "concepts": [[text_of(unit).split()[1], 0.5]],
                "truth": "red",
                "correct": unit % 5 == 0,
            }
        ]
        texts = [
            {"vlm": "demo:llava-p8", "how": "topk masks sae", "text": text_of(unit), "chosen": True, "control": False, "iou": 0.25},
            {"vlm": "demo:llava-p8", "how": "steering random all", "text": "a grey background", "chosen": False, "control": True},
        ]  # fmt: skip
        yield {
            **_same(stage), "unit": unit, "figures": json.dumps({"density": 0.01, "images_active": 3, "max": 2.0}),
            "histogram": None if is_dead else [0] * 30 + [5, 9, 2] + [0] * 31, "names": json.dumps([] if is_dead else names),
            "concepts": json.dumps([] if is_dead else [{"level": "image", "concept": f"colour={text_of(unit).split()[1]}", "auroc": 0.9, "f1": 0.5}]),
            "texts": json.dumps([] if is_dead else texts), "partners": json.dumps(partners.get(unit, [])),
            "neighbours": json.dumps([[(unit + 1) % 10, 0.5]]), "images": json.dumps([] if is_dead else [image] * 3),
            "thumbnails": None if is_dead else thumbnails, "cover": None if is_dead else cover,
            "maps": None if is_dead else maps, "map_h": None if is_dead else GRID, "map_w": None if is_dead else GRID,
            "map_most": None if is_dead else 2.0,
        }  # fmt: skip


def _index(stage: StageSpec, units: range, partners: dict[int, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for unit in units:
        is_dead, text = unit % 10 == 9, text_of(unit)
        place = np.random.default_rng(unit).normal(size=2) + np.array([5 * (unit % len(COLOURS)), 0])
        own = partners.get(unit, [])
        yield {
            **_same(stage), "unit": unit, "name": None if is_dead else text.split()[1], "name_score": None if is_dead else 0.5,
            "text": None if is_dead else text, "text_iou": None if is_dead else 0.25, "concept": None if is_dead else f"colour={text.split()[1]}",
            "auroc": None if is_dead else 0.9, "words": "" if is_dead else f"{text}\n{text.split()[1]}\ncolour={text.split()[1]}",
            "images_active": 0 if is_dead else 3, "density": 0.0 if is_dead else 0.01, "largest": 2.0, "monosemanticity": None,
            "partners": len({row["model"] for row in own}), "best_r": own[0]["r"] if own else None,
            "x": None if is_dead else float(place[0]), "y": None if is_dead else float(place[1]),
            "topic": None if is_dead else COLOURS[unit % len(COLOURS)],
        }  # fmt: skip
