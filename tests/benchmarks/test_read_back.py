"""How small stored vectors are and how fast they come back as one tensor; run with `make bench`, prints figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.catalog import Catalog
from cluster.parquet import PartEncoder, sha256
from cluster.read import Lake
from cluster.stores import make_store
from schemas.plans import Published, StageSpec, StoredPart
from schemas.tables import TABLES

ROWS, PARTS, WIDTH = 8192, 8, 768


def write_vectors(folder: Path) -> Lake:
    """65,536 vectors of 768 channels, low rank with outlier channels and noise, rounded to fp16 as extraction does."""
    rng = np.random.default_rng(0)
    store = make_store(str(folder))
    stage = StageSpec(
        kind="extract", method=1, subject="demo:x", output="activations", params={"site": "resid_post.1@patch"}
    )
    mixing = rng.standard_normal((16, WIDTH)) * (1 + 9 * (rng.random(WIDTH) < 0.02))
    schema = TABLES["activations"].schema
    parts = []
    for number in range(PARTS):
        values = rng.standard_normal((ROWS, 16)) @ mixing + 0.3 * rng.standard_normal((ROWS, WIDTH))
        flat = pa.array(values.astype(np.float16).astype(np.float32).ravel())
        act = pa.ListArray.from_arrays(pa.array(np.arange(0, ROWS * WIDTH + 1, WIDTH, dtype=np.int32)), flat)
        texts = [pa.array([text] * ROWS) for text in (stage.digest, stage.subject, "resid_post.1@patch")]
        ids = pa.array([f"{number:04x}{i:028x}" for i in range(ROWS)])
        numbers = [pa.array(np.arange(ROWS)), pa.array(np.zeros(ROWS, np.int32))]
        encoder = PartEncoder(TABLES["activations"])
        columns = [*texts, ids, *numbers, act.cast(schema.field("act").type)]
        encoder.add(pa.RecordBatch.from_arrays(columns, schema=schema))
        for data, rows in ((part.read(), part.rows) for part in encoder.finish()):
            key = f"tables/activations/part-{number:05d}.parquet"
            store.create(key, data)
            parts.append(StoredPart(table="activations", key=key, rows=rows, bytes=len(data), sha256=sha256(data)))
    return Lake(Catalog(store, (Published(stage=stage, tables={"activations": tuple(parts)}, content="x"),)))


def best_of(tries: int, call: Callable[[], object]) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of the try with the least wall time."""
    seen = []
    for _ in range(tries):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        seen.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(seen)


@pytest.mark.bench
def test_vectors_are_small_and_read_back_at_the_speed_of_the_decoder(tmp_path: Path) -> None:
    lake = write_vectors(tmp_path)
    values = ROWS * PARTS * WIDTH
    size = lake.stages()["bytes"].to_pylist()[0] / (2 * values)
    where = {"model": "demo:x", "site": "resid_post.1@patch"}
    wall, cpu = best_of(5, lambda: lake.table("activations", where=where).torch())
    files = sorted(tmp_path.rglob("*.parquet"))
    plain, _ = best_of(5, lambda: [pq.read_table(file, columns=["act"], partitioning=None) for file in files])
    print(f"\nstored: {size:.3f} of raw fp16 (ids included)")
    print(
        f"read back into one tensor: {values / wall / 1e6:.0f} million values/s, {values / cpu / 1e6:.0f} per CPU second"
    )
    print(f"time of pyarrow reading the same column without making a tensor: {plain / wall:.2f} of ours")
    assert lake.table("activations", where=where).torch().shape == (ROWS * PARTS, WIDTH)
    assert size <= 0.95
