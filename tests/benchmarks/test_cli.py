"""How long the verbs take that people wait for, next to a bare interpreter; run with `make bench`, prints seconds."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lakes import Lake, export, make_extract

ROUNDS = 3
SPEC = """\
kind: pipeline
name: test
store: {lake}
images: {{ref: "folder:{folder}/images", labels: "file:{folder}/labels.parquet"}}
stages:
  acts: {{kind: extract, model: "demo:clip-p8", sites: ["resid_post.*@patch:mean"], outputs: [activations, embeddings]}}
"""


def seconds(*words: str) -> float:
    """The median of a few processes, start to end."""
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True, env={**os.environ, "COLUMNS": "120"})
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


@pytest.mark.bench
def test_help_validate_and_plan_against_a_bare_interpreter(tmp_path: Path) -> None:
    """The spec is over 200 images that are indexed and a model that is inspected, so that `plan` plans every shard."""
    export(tmp_path / "world", 200)
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.format(lake=tmp_path / "lake", folder=tmp_path / "world"))
    facts = make_extract(tmp_path / "world", ("demo:clip-p8",), sites=[], outputs=["embeddings"])
    assert Lake(tmp_path / "lake").run(facts).exit_code == 0
    bare = seconds("-c", "pass")
    print(f"\nbare interpreter {bare:.2f} s; median of {ROUNDS} each, goal under 1 s")
    for verb in (["--help"], ["validate", str(spec)], ["plan", str(spec)]):
        taken = seconds("-m", "cluster.cli", *verb)
        print(f"miclip {verb[0]}: {taken:.2f} s, {taken / bare:.0f} times the bare interpreter")
