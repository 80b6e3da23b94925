"""The spec of the first night, run as its driver runs it but for Ray, and what the page of figures says afterwards."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.metrics import STAGES, STATUS, StoreMetrics
from cluster.stores import make_store
from infra.clusters import SPEC, entrypoint
from infra.render import DEFAULTS
from infra.values import read_values


@pytest.mark.slow
def test_the_first_night_publishes_its_tables_and_the_second_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    values, _ = read_values(DEFAULTS)
    there = {SPEC: str(DEFAULTS.parent / values.spec), values.store.uri: str(tmp_path / "lake")}
    words = [there.get(word, word) for word in shlex.split(entrypoint(values))[1:]]
    at = words.index("--address")
    words[at : at + 2] = ["--executor", "serial", "--set", "images.ref=world:seed=0,n=24"]
    metrics = StoreMetrics(make_store(str(tmp_path / "lake")))
    for number in (1, 2):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        found = {(s.metric, s.labels): s.value for s in metrics.read()}
        assert found[STATUS, ("first", "DONE")] == 1
        assert found[STAGES, ("first", "to do")] == found[STAGES, ("first", "failed")] == 0
        assert {labels: value for (metric, labels), value in found.items() if metric.name == "miclip_run_number"} == {
            ("first",): number
        }
    assert "all of them before" in done.stdout
    sql = ["sql", "--store", str(tmp_path / "lake"), "SELECT model, count(*) AS images FROM embeddings GROUP BY model"]
    assert CliRunner().invoke(app, sql).stdout.count("24") == 2
