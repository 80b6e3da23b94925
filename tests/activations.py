"""Publishes a table of activations that a test made up, as extract would have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from cluster import parquet
from cluster.ledger import publish
from cluster.parquet import PartEncoder, sha256
from cluster.stores.base import Store
from jobs.rows import make_batch, make_vectors
from schemas import layout
from schemas.plans import DoneMarker, Plan, Round, StageSpec, StoredPart
from schemas.tables import TABLES

ImageRows = tuple[int, np.ndarray]
"""Row of an image in its index, and what it gave: [tokens, width]."""


def image_id(image_index: int) -> str:
    """The id of a made-up image."""
    return f"{image_index:032x}"


def make_stage(site: str = "resid_post.0@patch", round_to: str = "fp16", seed: int = 0) -> StageSpec:
    """A stage of activations; stages of different seeds have different digests."""
    params = {"site": site, "round_to": round_to, "seed": seed}
    return StageSpec(kind="extract", method=1, subject="demo:made-up", output="activations", params=params)


def make_images(n: int, tokens: int, width: int, seed: int = 0) -> Iterator[ImageRows]:
    """Gaussian rows that fp16 holds exactly; every seventh image is a duplicate or bad and gives none."""
    generator = np.random.default_rng(seed)
    for i in range(n):
        if i % 7 != 3:
            yield i, generator.standard_normal((tokens, width)).astype(np.float16).astype(np.float32)


def publish_activations(
    store: Store, stage: StageSpec, images: list[ImageRows], shard_rows: int = 100, group_bytes: int | None = None
) -> None:
    """Store and publish the rows; `group_bytes` instead of the real size of row groups makes many of few rows."""
    real, parquet.ROW_GROUP_BYTES = parquet.ROW_GROUP_BYTES, group_bytes or parquet.ROW_GROUP_BYTES
    try:
        _publish(store, stage, images, shard_rows)
    finally:
        parquet.ROW_GROUP_BYTES = real


def _publish(store: Store, stage: StageSpec, images: list[ImageRows], shard_rows: int) -> None:
    n_rows = max((index for index, _ in images), default=0) + 1
    plan = Plan(stage=stage, rounds=(Round(name="map", rows=n_rows, shard_rows=shard_rows),), worker="made up")
    for shard in plan.all_shards():
        encoder = PartEncoder(TABLES["activations"])
        for index, values in images:
            if shard.start <= index < shard.stop and len(values):
                encoder.add(_batch(stage, index, values))
        parts = []
        for n, part in enumerate(encoder.finish()):
            key, data = layout.part_key("activations", stage, shard, n), part.read()
            store.create(key, data)
            parts.append(StoredPart(table="activations", key=key, rows=part.rows, bytes=len(data), sha256=sha256(data)))
        marker = DoneMarker(shard=shard.number, round=0, parts=tuple(parts))
        store.create(layout.done_key(stage.digest, shard.number), marker.canonical_json().encode())
    publish(store, plan, ["activations"])


def _batch(stage: StageSpec, index: int, values: np.ndarray) -> pa.RecordBatch:
    tokens = len(values)
    columns = {
        "stage": stage.digest,
        "model": stage.subject,
        "site": str(stage.params["site"]),
        "image_id": [image_id(index)] * tokens,
        "image_index": [index] * tokens,
        "token": list(range(tokens)),
        "act": make_vectors(values),
    }
    return make_batch("activations", columns)
