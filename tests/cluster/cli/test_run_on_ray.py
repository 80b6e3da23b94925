"""`miclip run` as it is by default: on Ray actors, with a terminal that stays clean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def run(spec: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", "run", str(spec), "--cpus", "2", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def test_a_run_on_ray_equals_one_in_this_process_and_prints_only_its_own_words(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("kind: selftest\nstore: lake\nrows: 60\nshard_rows: 10\n")
    here = json.loads(run(spec, "--executor", "serial", "--store", str(tmp_path / "other"), "--json").stdout)
    ray = run(spec, "--json")
    assert ray.returncode == 0, ray.stderr
    report = json.loads(ray.stdout)
    assert [s["digest"] for s in report["stages"]] == [s["digest"] for s in here["stages"]]
    assert ray.stderr == ""
    parts = {
        path.relative_to(tmp_path / "lake"): path.read_bytes() for path in (tmp_path / "lake/tables").rglob("*.parquet")
    }
    assert parts == {
        p.relative_to(tmp_path / "other"): p.read_bytes() for p in (tmp_path / "other/tables").rglob("*.parquet")
    }
    again = run(spec)
    assert again.returncode == 0 and "all of them before" in again.stdout
    assert "Ray" not in again.stderr, "nothing to do needs no Ray"


def test_what_this_machine_can_never_give_is_refused_with_both_numbers(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("kind: selftest\nstore: lake\nresources: {gpus: 2}\n")
    result = run(spec)
    assert result.returncode == 2
    assert "resources.gpus 2 asked for each worker, the largest machine of the cluster has 0" in result.stderr
    assert not (tmp_path / "lake" / "tables").exists()
