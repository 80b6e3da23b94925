"""Two members of more than 30,000 units under a budget of 2 GB: a worker holds what its plan says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.pipeline_spec import PipelineSpec
from tests.jobs.mine_rosetta import memory_of_pair
from tests.lakes import Lake

MODELS = [f"timm:vit_small_patch32_224/random({seed})" for seed in (0, 1)]
"""36,864 units each at the sites below: weights that nobody trained, on a grid of 7 x 7."""
ROUNDS = ("tiles", "rescore", "buddies")


def pipeline(images: int, name: str, **stage: Any) -> PipelineSpec:
    data = {
        "kind": "pipeline",
        "name": "t",
        "images": {"ref": f"world:seed=0,n={images}"},
        "matrix": {"model": MODELS},
        "stages": {name: stage},
    }
    return PipelineSpec.model_validate(data, strict=False)


def measure(folder: Path, images: int, **fields: Any) -> dict[str, int]:
    """What the first shard of each round holds at most, in a process of its own, beside what the plan states."""
    lake = Lake(folder / "lake")
    inspected = pipeline(images, "acts", kind="extract", sites=["resid_post.-1@cls"], outputs=["activation_moments"])
    report = lake.run(inspected)
    assert report.exit_code == 0, report.failures
    spec = pipeline(images, "shared", kind="mine_rosetta", sites=["mlp_act.*", "mlp_pre.*"], entries=0, **fields)
    command = [sys.executable, memory_of_pair.__file__, lake.uri, spec.canonical_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    print({name: f"{value / 2**20:.0f} MiB" if name != "shards" else value for name, value in found.items()})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("images", [48, 96])
def test_a_worker_holds_what_its_plan_states_however_many_images_there_are(tmp_path: Path, images: int) -> None:
    found = measure(tmp_path, images, maps="recompute", budget_gb=2.0)
    assert found["shards"] >= 9  # 36,864 x 36,864 products twice are 10 GiB
    peak = max(found[name] for name in ROUNDS)
    assert 0.9 * found["stated"] <= peak <= 1.1 * found["stated"], found
