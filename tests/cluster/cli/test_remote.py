"""submit, watch and cancel as a person types them, as far as no cluster is needed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster import alive
from cluster.alive import Heart
from cluster.cli.app import app
from cluster.runs import RunOptions, RunState, load_state, new_run, save_options, save_state
from cluster.stores.base import make_store
from schemas.layout import alive_key
from tests.paces import Time
from tests.published import SPEC, publish_numbers, run_spec
from tests.servers import free_port


def miclip(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("MICLIP_STORE", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "1")  # which allows a short patience


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """numbers-00001 is done; numbers-00002 was cancelled; far-00001 and -00002 were submitted, none ended."""
    folder = tmp_path_factory.mktemp("lake")
    store = publish_numbers(folder)
    put(store, "numbers", "CANCELLED", message="stopped (cancelled); more", exit_code=130)
    for attempt, sign in ((1, 0.0), (2, 4e9)):
        run = put(store, "far", "RUNNING")
        save_options(store, run, RunOptions(submission=f"far-0123abcd-a{attempt}", jobs="http://127.0.0.1:1"))
        store.replace(alive_key(run), json.dumps({"time": sign}).encode())
    return folder


def put(store: Any, pipeline: str, status: str, **fields: Any) -> str:
    run = new_run(store, pipeline, "kind: selftest\nname: far\n")
    fields = {"run": run, "pipeline": pipeline, "number": 1, "status": status, **fields}
    save_state(store, RunState.model_validate(fields))
    return run


def test_a_run_that_has_ended_is_shown_from_its_beginning_with_its_exit_code(lake: Path) -> None:
    seen = miclip("watch", "numbers-00001", "--store", lake)
    assert seen.exit_code == 0
    assert "250 rows, 2 stages" in seen.stderr and "2 stages published in" in seen.stderr
    assert "numbers-00001 done  2 stages published" in seen.stdout
    events = [
        json.loads(line) for line in miclip("watch", "numbers-00001", "--store", lake, "--json").stdout.splitlines()
    ]
    assert [events[0]["event"], events[-1]["event"]] == ["planned", "finished"]


def test_a_failed_run_is_watched_to_its_failures(tmp_path: Path) -> None:
    assert run_spec(make_store(str(tmp_path / "lake")), SPEC + "error_shards: [0]\n").exit_code == 1
    seen = miclip("watch", "numbers-00001", "--store", tmp_path / "lake")
    assert seen.exit_code == 1
    assert "numbers-00001 failed" in seen.stdout and "✗" in seen.stderr and "what workers printed" not in seen.stderr


def test_the_run_that_goes_on_needs_no_name(lake: Path, tmp_path: Path) -> None:
    from cluster.cli.remote import _find_running

    store = make_store(str(lake))
    clock = Time(
        during=lambda: store.replace(alive_key("far-00002"), json.dumps({"time": 4e9, "beat": clock.now}).encode())
    )
    assert _find_running(store, clock.pace()) == "far-00002"  # and far-00001 has shown no life meanwhile
    (tmp_path / "lake").mkdir()
    none = miclip("watch", "--store", tmp_path / "lake")
    assert none.exit_code == 2 and "no run goes on in" in none.stderr
    assert "; it has none yet" in none.stderr and "such as" not in none.stderr


def test_a_lost_driver_is_watched_to_where_it_was_lost(lake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "ALIVE_SECONDS", 0.4)
    seen = miclip("watch", "far-0123abcd-a1", "--store", lake, "--patience", "1.5")
    assert seen.exit_code == 3 and "far-00001 LOST" in seen.stdout and "miclip retry far-00001" in seen.stdout
    assert "far-00001 seems to be lost; waiting 1.5s for a sign of life" in seen.stderr


def test_who_watches_a_silent_driver_is_told_for_how_long_it_is(lake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.cli.remote import _watch

    assert _watch(make_store(str(lake)), "far-00001", Time().pace()._replace(patience=95), as_json=False) == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if "last sign" in line]
    assert lines == [f"last sign of life {ago} ago; lost after 1m35s" for ago in ("40s", "1m00s", "1m20s")]


def test_status_and_logs_know_submissions(lake: Path) -> None:
    shown = miclip("status", "far-0123abcd-a2", "--store", lake)
    assert "far-00002 RUNNING" in shown.stdout and "submission far-0123abcd-a2" in shown.stdout
    assert (
        json.loads(miclip("status", "far-00002", "--store", lake, "--json").stdout)["submission"] == "far-0123abcd-a2"
    )
    assert "CANCELLED" in miclip("status", "--store", lake).stdout
    assert miclip("logs", "far-0123abcd-a2", "--store", lake).exit_code == 0
    refused = miclip("logs", "numbers-00001", "--driver", "--store", lake)
    assert refused.exit_code == 2 and "was not submitted to a cluster" in refused.stderr
    assert miclip("status", "far-0123abcd-a3", "--store", lake).exit_code == 2


def test_a_driver_that_does_not_answer_and_a_cluster_that_is_away_are_said(lake: Path) -> None:
    store = make_store(str(lake))
    run = put(store, "deaf", "RUNNING")
    save_options(store, run, RunOptions(submission="deaf-0123abcd-a1", jobs="http://127.0.0.1:1"))
    heart, ended = Heart(store, run), threading.Event()
    beating = threading.Thread(target=lambda: [heart.beat() for _ in iter(lambda: ended.wait(0.05), True)])
    beating.start()
    said = miclip("cancel", run, "--store", lake, "--seconds", "0")
    ended.set()
    beating.join()
    assert said.exit_code == 3
    assert "only the store is asked: the jobs interface at http://127.0.0.1:1 does not answer" in said.stderr
    assert "deaf-00001 was asked to end; its driver lives and has not answered for 0 s" in said.stderr
    assert "with --address its cluster can end it" in said.stderr


def test_cancel_of_what_has_ended_says_how_it_ended(lake: Path) -> None:
    assert "numbers-00001 DONE" in miclip("cancel", "numbers-00001", "--store", lake).stdout
    assert json.loads(miclip("cancel", "numbers-00002", "--store", lake, "--json").stdout)["status"] == "CANCELLED"


def test_a_run_of_this_machine_is_cancelled_from_another_process_and_goes_on_later(tmp_path: Path) -> None:
    spec, store = tmp_path / "spec.yaml", tmp_path / "lake"
    spec.write_text(SPEC)
    order = ["run", str(spec), "--executor", "serial", "--store", str(store), "--set", "shard_rows=5"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *order, "--set", "sleep_ms=400"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not list(store.rglob("*.done.json")):
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()
        time.sleep(0.05)
    said = miclip("cancel", "numbers-00001", "--store", store, "--seconds", "240")
    assert said.exit_code == 0 and "numbers-00001 CANCELLED" in said.stdout
    _, stderr = driver.communicate(timeout=240)
    assert driver.returncode == 130 and "stopped (cancelled)" in stderr
    assert load_state(make_store(str(store)), "numbers-00001").status == "CANCELLED"
    done = len(list(store.rglob("*.done.json")))
    assert miclip(*order).exit_code == 0
    assert 0 < done < len(list(store.rglob("*.done.json")))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "no cluster: give --address http://host:8265"),
        (["--address", "head:8265"], 2, "expected the URL of the cluster's dashboard"),
        (["--address", "http://me:hunter2@head:8265"], 2, "found a name or password in the URL"),
        (["--address", "http://127.0.0.1:{port}"], 3, "does not answer"),
    ],
)
def test_where_nothing_can_be_submitted_is_one_sentence(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    words = [word.replace("{port}", str(free_port())) for word in words]
    told = miclip("submit", tmp_path / "spec.yaml", "--store", tmp_path / "lake", *words)
    assert told.exit_code == code and said in told.stderr and len(told.stderr.splitlines()) == 1
    assert "hunter2" not in told.stderr and not (tmp_path / "lake").exists()
