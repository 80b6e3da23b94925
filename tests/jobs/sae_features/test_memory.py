"""A bucket of made-up codes at its planned size stays within the memory that the plan states."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.between import pack
from jobs.protocol import Part
from jobs.sae_features.between import EMBEDDINGS, IMAGES, codes_name
from jobs.sae_features.describe import Bucket
from jobs.sae_features.plan import CODE_BYTES, IMAGE_BYTES
from miclip_core.sae.features.codes import sort_codes
from miclip_core.sae.sae import Sae
from schemas.errors import KeyMissing
from schemas.plans import Plan, Round, StageSpec
from schemas.sae import SaeConfig

IMAGES_PER_SHARD, LATENTS, WIDTH, K = 1024, 4096, 64, 32


class MadeUp:
    """As much of Inputs as the merge round reads: artifacts of map shards, and an index with a thousand labels."""

    def __init__(self, shards: int) -> None:
        self._n = shards * IMAGES_PER_SHARD
        self._artifacts = {(s, a.name): a.data for s in range(shards) for a in self._shard(s)}

    @staticmethod
    def _shard(shard: int):
        random, n = np.random.default_rng(shard), IMAGES_PER_SHARD
        latents = np.arange(n)[:, None] * 7 + np.arange(K) * (LATENTS // K) + random.integers(0, 97, (n, 1))
        image = np.repeat(np.arange(n, dtype=np.int32), K)
        value = random.random(n * K, dtype=np.float32) + 0.1
        codes = sort_codes(np.sort(latents % LATENTS, 1).ravel(), value, image, np.full(n * K, -1), LATENTS)
        names = np.array([f"{shard * n + i:032x}" for i in range(n)])
        yield pack("", codes_name(0), codes.state())
        yield pack("", IMAGES, {"image_index": np.arange(n) + shard * n, "image_id": names})
        yield pack("", EMBEDDINGS, {"embedding": random.normal(size=(n, WIDTH)).astype(np.float32)})

    def artifact(self, stage: str, shard: int, name: str) -> bytes:
        if (shard, name) not in self._artifacts:
            raise KeyMissing(name)
        return self._artifacts[shard, name]

    def table(self, stage: str, table: str, columns: Sequence[str], between: object) -> Iterator[pa.RecordBatch]:
        n = self._n
        yield pa.record_batch(
            {
                "image_index": pa.array(np.arange(n)),
                "uri": pa.array([f"/data/{i}.jpg" for i in range(n)]),
                "label": pa.array([f"class {i % 1000}" for i in range(n)]),
                "attributes": pa.array([[("side", str(i % 2))] for i in range(n)], pa.map_(pa.string(), pa.string())),
            }
        )


@pytest.mark.slow
def test_a_bucket_needs_no_more_than_is_stated_per_code_and_image():
    shards = 100
    n = shards * IMAGES_PER_SHARD
    params = {
        "site": "resid_post.3@cls", "tables": ["codes", "features", "selectivity", "top_images"], "top_k": 20,
        "concepts_per_feature": 5, "features_per_concept": 10, "max_values": 200, "min_positives": 10, "positions": 1,
        "first_patch": 0, "grid": None, "whole_view": True,
    }  # fmt: skip
    inputs = {"sae": "a" * 20, "labels": "index"}
    stage = StageSpec(
        kind="sae_features", method=1, subject="demo:made-up", output="features", params=params, inputs=inputs
    )
    rounds = (Round(name="map", rows=n, shard_rows=IMAGES_PER_SHARD), Round(name="merge", rows=1, shard_rows=1))
    plan = Plan(stage=stage, rounds=rounds, worker="made up")
    weights = torch.randn(LATENTS, WIDTH, generator=torch.Generator().manual_seed(0))
    config = SaeConfig(arch="topk", d=WIDTH, latents=LATENTS, k=K)
    sae = Sae(config, weights, torch.zeros(LATENTS), weights, torch.zeros(WIDTH))
    made_up = MadeUp(shards)
    tracemalloc.start()
    rows = 0
    for made in Bucket(plan, sae, 0, made_up).results():  # type: ignore[arg-type]
        rows += made.batch.num_rows if isinstance(made, Part) and made.table == "sae_codes" else 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{rows:,} codes of {n:,} images: {peak / 2**20:.0f} MiB, {peak / rows:.0f} bytes per code")
    assert rows == n * K
    assert peak < rows * CODE_BYTES["merging"] + n * IMAGE_BYTES
