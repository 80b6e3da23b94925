"""The night as its driver runs it: the spec of the first one without Ray, and the command of all on a cluster of that shape."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.metrics import STAGES, STATUS, StoreMetrics
from cluster.stores import make_store
from infra.clusters import SPEC, entrypoint
from infra.render import DEFAULTS
from infra.values import read_values
from tests.on_cluster import ROOT, TOKEN, start_cluster, wait_until


@pytest.mark.slow
def test_the_first_night_publishes_its_tables_and_the_second_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    values, _ = read_values(DEFAULTS)
    assert values.pages is not None
    there = {SPEC: str(DEFAULTS.parent / values.spec), values.store.uri: str(tmp_path / "lake")}
    there[values.pages.to] = str(tmp_path / "pages")
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
    site = json.loads((tmp_path / "pages" / "site.json").read_text())
    assert [one["run"] for one in site["runs"]] == ["first-00002", "first-00001"]
    assert [(one["model"], one["units"]) for one in site["sets"]] == [("demo:clip-p8", 384)]
    sql = ["sql", "--store", str(tmp_path / "lake"), "SELECT model, count(*) AS images FROM embeddings GROUP BY model"]
    assert CliRunner().invoke(app, sql).stdout.count("24") == 2


@pytest.mark.slow
def test_the_command_of_a_night_works_on_a_head_without_cpus_that_asks_for_a_token(tmp_path: Path) -> None:
    """Handed over as the operator does, through the jobs interface; workers are on the two other machines."""
    values = read_values(DEFAULTS)[0].model_copy(update={"pages": None})
    (tmp_path / "spec.yaml").write_text("kind: selftest\nname: night\nrows: 60\nshard_rows: 3\n")
    there = {SPEC: str(tmp_path / "spec.yaml"), values.store.uri: str(tmp_path / "lake")}
    words = [there.get(word, word) for word in shlex.split(entrypoint(values))]
    assert words[0] == "miclip"
    command = shlex.join([sys.executable, "-m", "cluster.cli", *words[1:]])
    job = {"entrypoint": f"cd {shlex.quote(str(ROOT))} && {command}", "submission_id": "night-1"}
    with start_cluster(tmp_path) as place:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert requests.post(f"{place.url}/api/jobs/", json=job, timeout=60).status_code == 401, "not without the token"
        requests.post(f"{place.url}/api/jobs/", json=job, headers=headers, timeout=60).raise_for_status()

        def log() -> str:
            return requests.get(f"{place.url}/api/jobs/night-1/logs", headers=headers, timeout=60).text

        wait_until(lambda: place.status_of("night-1") in ("SUCCEEDED", "FAILED", "STOPPED"), log)
        assert place.status_of("night-1") == "SUCCEEDED", log()
    found = {(s.metric.name, s.labels[-1:]): s.value for s in StoreMetrics(make_store(str(tmp_path / "lake"))).read()}
    assert found["miclip_shards", ("done",)] == 21, "20 shards, and one that counts rows"
