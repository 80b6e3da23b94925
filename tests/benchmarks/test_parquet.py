"""How fast vectors are encoded into parts and read back into tensors, and how small they are; run with `make bench`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import miclip
from cluster.parquet import PartEncoder
from cluster.runs import RunTables, new_run, save_tables
from cluster.stores.base import make_store
from jobs.extract.products import make_batch, make_vectors
from schemas import layout
from schemas.plans import Plan, Published, Round, StageSpec, StoredPart
from schemas.tables import get_table

WIDTH, BATCH, ROWS = 768, 1024, 65_536
ROUNDS = 5


def make_activations() -> list[pa.RecordBatch]:
    """16,384 rows of low-rank numbers with a few strong channels, as residual streams have them, rounded to fp16."""
    rng = np.random.default_rng(0)
    rows = 16_384
    low = rng.standard_normal((rows, 32), np.float32) @ rng.standard_normal((32, WIDTH), np.float32) / 6
    values = low + 0.5 * rng.standard_normal((rows, WIDTH), np.float32)
    values[:, :4] *= 30
    values = values.astype(np.float16).astype(np.float32)
    return [
        make_batch(
            "activations",
            {
                "stage": "0" * 20,
                "model": "open_clip:ViT-B-32/laion2b_s34b_b79k",
                "site": "resid_post.10@patch",
                "image_id": pa.array([f"{row // 49:032x}" for row in range(start, start + BATCH)]),
                "image_index": np.arange(start, start + BATCH) // 49,
                "token": (np.arange(start, start + BATCH) % 49).astype(np.int32),
                "act": make_vectors(values[start : start + BATCH]),
            },
        )
        for start in range(0, rows, BATCH)
    ]


def encode(batches: list[pa.RecordBatch]) -> list[tuple[bytes, int]]:
    encoder = PartEncoder(get_table("activations"))
    for batch in batches:
        encoder.add(batch)
    return [(part.read(), part.rows) for part in encoder.finish()]


def best(work: Callable[[], object]) -> tuple[float, float]:
    """(seconds on the clock, seconds of processor time), each the best of a few."""
    clock, busy = [], []
    for _ in range(ROUNDS):
        started, started_busy = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - started)
        busy.append(time.process_time() - started_busy)
    return min(clock), min(busy)


def report(what: str, values: int, clock: float, busy: float) -> None:
    cores = os.cpu_count() or 1
    rate, of_one = values / clock / 1e6, values / busy / 1e6
    print(
        f"\n{what}: {rate:.0f} million values/s on the clock ({cores} cores), {of_one:.0f} a second of processor time"
    )


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published stage of 65,536 x 768 activations in four parts."""
    folder = tmp_path_factory.mktemp("lake")
    store = make_store(str(folder))
    stage = StageSpec(
        kind="extract", method=1, subject="m", output="activations", params={"site": "resid_post.10@patch"}
    )
    plan = Plan(stage=stage, rounds=(Round(name="map", rows=ROWS, shard_rows=ROWS // 4),), worker="w")
    ((data, rows),) = encode(make_activations())
    parts = []
    for shard in plan.all_shards():
        key = layout.part_key("activations", stage, shard, 0)
        store.create(key, data)
        parts.append(StoredPart(table="activations", key=key, rows=rows, bytes=len(data), sha256=""))
    published = Published(stage=stage, tables={"activations": tuple(parts)}, content="c")
    store.create(layout.published_key(stage.digest), published.canonical_json().encode())
    run = new_run(store, "bench", "")
    save_tables(store, RunTables(run=run, pipeline="bench", stages={"acts": (stage.digest,)}))
    return folder


@pytest.mark.bench
def test_encoding_activations():
    batches = make_activations()
    values = len(batches) * BATCH * WIDTH
    ((data, _),) = encode(batches)
    report("encode activations", values, *best(lambda: encode(batches)))
    print(f"stored bytes / raw fp16: {len(data) / (2 * values):.3f} (goal 0.95)")


@pytest.mark.bench
def test_reading_activations_back_into_a_tensor(lake):
    """Through the read API, new each time; and the parts alone through pyarrow's own threads, for comparison."""

    def read() -> torch.Tensor:
        return miclip.open(str(lake)).table("activations").torch()

    assert read().shape == (ROWS, WIDTH)
    report("read into torch, goal 150", ROWS * WIDTH, *best(read))
    parts = sorted(lake.glob("tables/activations/*/*/*.parquet"))
    report("pyarrow alone, no tensor", ROWS * WIDTH, *best(lambda: [pq.read_table(p, columns=["act"]) for p in parts]))
