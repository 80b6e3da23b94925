"""The verb that compares runs and models, on a command line."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.stores import make_store
from tests.published import run_spec

SPEC = """\
kind: pipeline
name: zoo
stages:
  one: {kind: selftest, subject: one, rows: 30, shard_rows: 20, seed: 0}
  two: {kind: selftest, subject: two, rows: 20}
"""


def drift(lake: Path, *words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["drift", *words, "--store", str(lake)])
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output.replace("\n", " ")


def test_drift_says_what_changed_between_any_two_runs(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        run_spec(make_store(str(tmp_path)), SPEC, f"stages.one.seed={seed}")
    shown = drift(tmp_path)
    assert "since zoo-00002: 1 as they were, 1 change" in shown
    assert "nothing moved: 2 stages compared, 1 of them the same" in shown
    assert "nothing moved: 2 stages compared, all the same" in drift(tmp_path, "zoo-00003", "--against", "zoo-00003")
    found = json.loads(drift(tmp_path, "zoo-00003", "--against", "zoo-00001", "--json"))
    assert found["changes"]["before"] == "zoo-00001" and found["rows"] == []
    both = json.loads(drift(tmp_path, "--models", "one", "two", "--json"))
    assert both["changes"] is None and both["run"] == "zoo-00003"
    assert "first finished run" in drift(tmp_path, "zoo-00001", code=2)
    assert "leave --against out" in drift(tmp_path, "--models", "one", "two", "--against", "zoo-00001", code=2)
