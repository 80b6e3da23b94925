"""Publishes stages whose rows a test made by hand, as if they had been computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.ledger import publish
from cluster.parquet import PartEncoder, sha256
from jobs.rows import make_batch
from schemas import layout
from schemas.plans import DoneMarker, Plan, Round, Shard, StageSpec, StoredArtifact, StoredPart
from schemas.tables import get_table
from tests.lakes import Lake


def publish_stage(
    lake: Lake, stage: StageSpec, tables: Mapping[str, Mapping[str, Any]], artifacts: Mapping[str, bytes] = {}
) -> None:
    """One part per table with these columns (`stage` is filled in), and artifacts, all of one shard."""
    shard = Shard(number=0, round=0, start=0, stop=1)
    parts = []
    for table, columns in tables.items():
        encoder = PartEncoder(get_table(table))
        encoder.add(make_batch(table, {"stage": stage.digest, **columns}))
        for n, part in enumerate(encoder.finish()):
            with part.file:
                data, key = part.read(), layout.part_key(table, stage, shard, n)
            lake.store.create(key, data)
            parts.append(StoredPart(table=table, key=key, rows=part.rows, bytes=len(data), sha256=sha256(data)))
    stored = []
    for name, data in artifacts.items():
        key = layout.artifact_key(stage.digest, 0, name)
        lake.store.create(key, data)
        stored.append(StoredArtifact(name=name, key=key, bytes=len(data), sha256=sha256(data)))
    marker = DoneMarker(shard=0, round=0, parts=tuple(parts), artifacts=tuple(stored))
    lake.store.create(layout.done_key(stage.digest, 0), marker.canonical_json().encode())
    plan = Plan(stage=stage, rounds=(Round(name="made", rows=1, shard_rows=1),), worker="made up")
    publish(lake.store, plan, list(tables), list(artifacts))
