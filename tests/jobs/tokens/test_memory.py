"""A table ten times as large as the memory that reading it takes streams through."""

from __future__ import annotations

import multiprocessing as mp
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.inputs import StoreInputs
from cluster.stores.base import make_store
from jobs.activations import Forward
from jobs.sae_tokens import SiteTokens
from jobs.tokens.order import Order
from jobs.tokens.sources import TableSource
from jobs.tokens.window import batches
from schemas.sae import StreamSettings
from tests.activations import publish_activations

TOKENS, WIDTH = 50, 256
SETTINGS = StreamSettings(batch_tokens=512, buffer_batches=8, block_images=20, holdout=0.05)
BUDGET = 80 << 20
"""Four windows of 2 MB as fp16, a few row groups of 1 MB with their decoding, and what allocators keep."""


def made_up() -> SiteTokens:
    forward = Forward(model="demo:made-up", inputs={}, params={}, effort={})
    return SiteTokens(forward=forward, site="resid_post.0@patch", round_to="fp16", stored=True)


def stream(folder: str, n_images: int, steps: int) -> int:
    """Bytes by which the largest memory of this process grows beyond what its libraries take."""
    torch.set_num_threads(1)
    source = TableSource(StoreInputs(make_store(folder)), [made_up()])
    site = made_up().site

    next(source.read([(0, 1)], [site]))  # what is loaded and kept once: code, footers, threads
    before = peak_memory()
    for step in batches(source, Order(n_images, SETTINGS), {site: steps}):
        assert torch.isfinite(step.x[site]).all()
    return peak_memory() - before


def peak_memory() -> int:
    """The most bytes of memory that this process ever had; what getrusage says was inherited from its parent."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found.group(1)) << 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_table_ten_times_the_memory_budget_streams(tmp_path: Path) -> None:
    n_images = 10 * BUDGET // (TOKENS * WIDTH * 4)
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((50, TOKENS, WIDTH)).astype(np.float16).astype(np.float32)
    images = [(i, patterns[i % 50]) for i in range(n_images)]
    publish_activations(make_store(str(tmp_path)), made_up().stage, images, shard_rows=1000, group_bytes=1 << 20)
    steps = int(n_images * TOKENS * 0.9 / SETTINGS.batch_tokens)
    assert steps * SETTINGS.batch_tokens * WIDTH * 4 > 8 * BUDGET
    with mp.get_context("spawn").Pool(1) as pool:
        grown = pool.apply(stream, (str(tmp_path), n_images, steps))
    print(f"{n_images * TOKENS * WIDTH * 4 / 2**20:.0f} MB streamed in {grown / 2**20:.0f} MB")
    assert grown < BUDGET
