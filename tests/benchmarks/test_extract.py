"""How close extraction comes to the bare forward pass, and what it holds in memory; run with `make bench`, prints ratios."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.board import Board
from cluster.planned import plan_pipeline
from cluster.shard_host import ShardHost
from cluster.works import group_siblings
from tests.lakes import Lake, export, make_extract

MODEL = "open_clip:ViT-B-32/random(0)"
BATCH, SHARD, ROUNDS = 32, 96, 3


def write_jpegs(folder: Path, n: int) -> None:
    """n different 256 x 256 photographs of smooth noise, at quality 90."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        small.resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)


@pytest.mark.bench
def test_extract_from_jpeg_to_parquet_against_the_bare_forward(tmp_path):
    """12 sites pooled to one vector each, and embeddings; decoding, hooks, checks, encoding and storing included."""
    torch.set_num_threads(2)
    write_jpegs(tmp_path / "images", SHARD * (ROUNDS + 1))
    spec = make_extract(
        tmp_path,
        (MODEL,),
        images={"ref": f"folder:{tmp_path}/images"},
        sites=["resid_post.*@patch:mean"],
        outputs=["activations", "embeddings"],
        batch_size=BATCH,
        shard_rows=SHARD,
        resources={"cpus": 2.0, "decode_threads": 1},
    )
    lake = Lake(tmp_path / "lake")
    index = make_extract(
        tmp_path, (MODEL,), images={"ref": f"folder:{tmp_path}/images", "limit": 1}, sites=[], outputs=["embeddings"]
    )
    assert lake.run(index).exit_code == 0  # inspects the model and indexes every image
    planned = plan_pipeline(spec, lake.store)
    (work,) = group_siblings((plan, c.cell.resources) for c in planned.cells for plan in c.plans)
    board = Board([work], {})
    tasks = list(board.ready())
    host = ShardHost(lake.uri)
    assert host.run(work, tasks[0]).state == "done"  # opens the model and warms up
    model = host._worker._model.module  # type: ignore[union-attr]
    images = torch.randn(SHARD, 3, 224, 224)
    ratios = []
    with torch.inference_mode():
        model.encode_image(images[:BATCH])
        for task in tasks[1:]:
            started = time.perf_counter()
            for i in range(0, SHARD, BATCH):
                model.encode_image(images[i : i + BATCH])
            bare = time.perf_counter() - started
            started = time.perf_counter()
            assert host.run(work, task).state == "done"
            whole = time.perf_counter() - started
            ratios.append(bare / whole)
            print(
                f"\nbare forward {SHARD / bare:.1f} images/s, extract {SHARD / whole:.1f} images/s, ratio {bare / whole:.3f}"
            )
    print(f"extract / bare forward, median of {ROUNDS}: {np.median(ratios):.3f} (goal 0.90)")


CHILD = """
import json, sys
from cluster.planned import plan_pipeline
from jobs.extract.plan import estimate
from tests.benchmarks.measures import peak
from tests.lakes import Lake, make_extract
folder, store = sys.argv[1:]
spec = make_extract(folder, ("demo:clip-p8",), images={"ref": f"folder:{folder}/images"},
    sites=["mlp_act.*@patch:sample(4,0)"], outputs=["activations", "activation_moments", "top_images"], batch_size=32, shard_rows=256)
lake = Lake(store)
report = lake.run(spec)
assert report.exit_code == 0, report.failures
planned = plan_pipeline(spec, lake.store)
costs = [estimate(p, planned.known) for c in planned.cells for p in c.plans]
planned_bytes = max(c.worker_memory for c in costs) + sum(c.memory for c in costs)
print(json.dumps({"peak": peak(), "planned": planned_bytes}))
"""


@pytest.mark.bench
def test_memory_is_no_more_than_the_plan_says_for_any_number_of_images(tmp_path):
    """Peak resident memory of a whole serial run, inspection and index included, over 1,000 and over 8,000 images."""
    peaks = []
    for n in (1000, 8000):
        folder = export(tmp_path / f"world-{n}", n)
        command = [sys.executable, "-c", CHILD, str(folder), str(tmp_path / f"lake-{n}")]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        figures = json.loads(out)
        peaks.append(figures["peak"])
        print(f"\n{n} images: peak {figures['peak'] / 1e6:.0f} MB, planned {figures['planned'] / 1e6:.0f} MB")
        assert figures["peak"] <= figures["planned"]
    print(f"peak at 8,000 images / at 1,000: {peaks[1] / peaks[0]:.3f}")
