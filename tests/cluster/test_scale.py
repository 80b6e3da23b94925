"""Planning a zoo as large as zoos get: a hundred models, twelve sites, the images of ImageNet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.cli.planning import make_report
from cluster.cost import Terms
from cluster.planned import plan_pipeline
from cluster.stores.posix import PosixStore
from tests.big_zoo import IMAGES, make_pipeline, publish_facts

SITES = [f"resid_post.{block}@patch:sample(16,0)" for block in range(12, 24)]
ACTS = {"kind": "extract", "sites": SITES, "outputs": ["activations", "embeddings"]}
SAES = {"kind": "train_sae", "reads": "acts", "latents": [8192, 32768], "k": 32, "resources": {"gpus": 0.5}}
SHARED = {"kind": "mine_rosetta", "sites": [f"mlp_act.{block}@patch" for block in range(12, 24)]}
SHARDS = IMAGES // 2048


class Counted(PosixStore):
    """A folder that counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: Counter[str] = Counter()

    def exists(self, key: str) -> bool:
        self.calls["exists"] += 1
        return super().exists(key)

    def list(self, prefix: str) -> list[str]:
        self.calls["list"] += 1
        return super().list(prefix)

    def get(self, key: str) -> bytes:
        self.calls["get"] += 1
        return super().get(key)


def test_a_plan_asks_twice_for_each_stage_that_is_left_and_once_for_each_that_is_cached(tmp_path: Path) -> None:
    """Whether it is published, and which of its shards are done."""
    store = Counted(tmp_path / "lake")
    for models in (4, 8):
        spec = make_pipeline(tmp_path / "tars", {"acts": ACTS, "sae": SAES}, models)
        publish_facts(store, spec)
        planned = plan_pipeline(spec, store)
        store.calls.clear()
        total = make_report(planned, store, Terms())["total"]
        assert (total["cached"], total["to_do"]) == (models + 1, models * (12 + 1 + 2 * 2 * 12))
        assert store.calls == {"exists": total["stages"], "list": total["to_do"] + 1}  # and which runs tell of costs


def measure(folder: Path, stages: dict[str, Any]) -> dict[str, Any]:
    """Plan in a process of its own, with the facts published before; (seconds of a CPU, GB at most, totals)."""
    spec = make_pipeline(folder / "tars", stages)
    publish_facts(PosixStore(folder / "lake"), spec)
    (folder / "spec.json").write_text(spec.model_dump_json())
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


PROGRAM = """
import json, sys, time
from pathlib import Path
from cluster.cli.planning import make_report
from cluster.cost import Terms
from cluster.planned import plan_pipeline
from cluster.stores import make_store
from schemas.pipeline_spec import PipelineSpec

folder = Path(sys.argv[1])
spec = PipelineSpec.model_validate_json((folder / "spec.json").read_text())
store = make_store(str(folder / "lake"))
report = make_report(plan_pipeline(spec, store), store, Terms())
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9
print(json.dumps({"seconds": time.process_time(), "gb": peak, **report["total"]}))
"""


@pytest.mark.slow
def test_a_hundred_models_at_twelve_sites_over_imagenet_are_planned_in_ten_seconds_and_a_gigabyte(
    tmp_path: Path,
) -> None:
    """All of it, from the start of Python: 813,000 shards of 1,300 stages, and two SAEs of every site, each measured."""
    found = measure(tmp_path, {"acts": ACTS, "sae": SAES})
    assert found["to_do"] == 100 * (12 + 1 + 2 * 2 * 12)
    assert found["shards_left"] == 100 * (13 * SHARDS + 2 * 2 * 12)
    assert found["flops"] > 100 * IMAGES * 162_000_000_000
    assert found["seconds"] < 10 and found["gb"] < 1


@pytest.mark.slow
def test_a_zoo_of_five_thousand_pairs_is_planned_in_a_gigabyte(tmp_path: Path) -> None:
    found = measure(tmp_path, {"shared": {**SHARED, "units": "neurons"}})
    assert found["to_do"] == 100 + 100 * 101 // 2 + 2  # units, pairs (each model with itself too), graph and dictionary
    assert found["gb"] < 1
