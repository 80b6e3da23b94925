"""How fast vectors are encoded into parts, and how small they get; run with `make bench`, prints figures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from cluster.parquet import PartEncoder
from jobs.rows import make_batch, make_vectors
from schemas.tables import get_table

WIDTH, BATCH = 768, 1024
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


@pytest.mark.bench
def test_encoding_activations():
    batches = make_activations()
    values = len(batches) * BATCH * WIDTH
    ((data, _),) = encode(batches)
    report("encode activations", values, *best(lambda: encode(batches)))
    print(f"stored bytes / raw fp16: {len(data) / (2 * values):.3f} (goal 0.95)")
