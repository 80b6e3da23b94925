"""How fast an SAE trains from stored Parquet, against the same tokens in memory; run with `make bench`, prints figures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.inputs import StoreInputs
from cluster.stores.base import make_store
from jobs.activations import Forward
from jobs.sae_tokens import SiteTokens
from jobs.tokens.order import Order
from jobs.tokens.sources import Source, TableSource, TokenRows
from jobs.tokens.window import batches
from miclip_core.sae.train import SaeTrainer
from schemas.sae import SaeSettings, StreamSettings
from tests.activations import image_id, publish_activations

N_IMAGES, TOKENS, WIDTH, STEPS = 1200, 50, 768, 24
SAE = SaeSettings(arch="topk", latents=8192, k=32, lr=1e-4, steps=STEPS, dead_tokens=10**6, warmup_steps=2)
STREAM = StreamSettings(batch_tokens=1024, buffer_batches=8, block_images=64, holdout=0.05)
FORWARD = Forward(model="demo:made-up", inputs={}, params={}, effort={})
SITE = SiteTokens(forward=FORWARD, site="resid_post.0@patch", round_to="fp16", stored=True)


class InMemory:
    """The same rows, decoded before the clock starts."""

    def __init__(self, images: list[tuple[int, np.ndarray]]) -> None:
        self._values = torch.from_numpy(np.stack([values for _, values in images])).half()

    def read(self, ranges: Sequence[tuple[int, int]], sites: Sequence[str]) -> Iterator[dict[str, TokenRows]]:
        for start, stop in ranges:
            values = self._values[start:stop].flatten(0, 1)
            images = tuple((i, image_id(i)) for i in range(start, start + len(values) // TOKENS))
            image_of_row = np.repeat(np.arange(len(images), dtype=np.int32), TOKENS)
            token = np.tile(np.arange(TOKENS, dtype=np.int32), len(images))
            yield dict.fromkeys(sites, TokenRows(values, image_of_row, token, images))


def train(source: Source) -> tuple[float, torch.Tensor]:
    """Seconds from the second window on, and the weights."""
    trainer = SaeTrainer(SAE, WIDTH)
    started, timed = 0.0, 0
    for i, step in enumerate(batches(source, Order(N_IMAGES, STREAM), {SITE.site: STEPS})):
        if i == 0:
            trainer.begin(step.windows[SITE.site].rows)
        if i == STREAM.buffer_batches // 2:
            started, timed = time.perf_counter(), STEPS - i
        trainer.step(step.x[SITE.site])
    return (time.perf_counter() - started) / timed, trainer.finish().W_dec


@pytest.mark.bench
def test_training_from_parquet_is_at_least_nine_tenths_as_fast_as_from_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    low = rng.standard_normal((N_IMAGES * TOKENS, 32), np.float32) @ rng.standard_normal((32, WIDTH), np.float32)
    values = low.astype(np.float16).astype(np.float32).reshape(N_IMAGES, TOKENS, WIDTH)
    images = list(enumerate(values))
    publish_activations(make_store(str(tmp_path)), SITE.stage, images, shard_rows=400)
    memory, table = InMemory(images), TableSource(StoreInputs(make_store(str(tmp_path))), [SITE])
    seconds: dict[str, list[float]] = {"memory": [], "table": []}
    weights = {}
    for _ in range(3):  # in turns, so that a busy machine is busy for both
        for name, source in (("memory", memory), ("table", table)):
            took, weights[name] = train(source)
            seconds[name].append(took)
    best = {name: min(some) for name, some in seconds.items()}
    ratio = best["memory"] / best["table"]
    print(f"\nstep from memory {best['memory']:.3f} s, from Parquet {best['table']:.3f} s: {ratio:.2f} of the speed")
    assert torch.equal(weights["memory"], weights["table"])
    assert ratio >= 0.9
