"""Nights that are really killed, and two at once: nothing is lost, nothing doubled, and one works at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.catalog import Scope, open_catalog, verify
from cluster.gc import sweep
from cluster.lease import find_term
from cluster.retention import Policy
from cluster.sql import run_sql
from cluster.stores import Store, make_store
from tests.cluster.test_notify import silence
from tests.paces import fast

ROOT = Path(__file__).parent.parent.parent
SPEC = "kind: selftest\nname: night\nrows: 400\nshard_rows: 20\nsleep_ms: {sleep}\n"
ROWS = "SELECT count(*) AS n, count(DISTINCT row) AS rows, sum(value) AS total FROM selftest"

pytestmark = pytest.mark.slow


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cluster.cli", "nightly", str(folder / "night.yaml"), "--executor", "serial"]
    environment = {
        **os.environ,
        "XDG_STATE_HOME": str(folder / "state"),
        "PYTHONPATH": str(ROOT),
        "MICLIP_STORE_BUDGET_S": "1",
    }
    return subprocess.Popen(
        [*command, "--store", str(folder / "lake"), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def wait_for_shards(store: Store, process: subprocess.Popen[str], n: int) -> None:
    """Until so many shards are done, or for ever if the process is not at work."""
    while sum(key.endswith(".done.json") for key in store.list("stages")) < n:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def answer(store: Store) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = run_sql(open_catalog(store), ROWS).read_all().to_pylist()
    return rows


def test_a_night_that_is_killed_is_ended_by_the_next_and_a_second_one_beside_it_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "night.yaml").write_text(SPEC.format(sleep=5000))
    store = make_store(str(tmp_path / "lake"))
    first = begin(tmp_path, "--patience", "2")
    wait_for_shards(store, first, 2)
    assert "is at work; nothing was done" in end(begin(tmp_path, "--patience", "60"))
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    done = [key for key in store.list("stages") if key.endswith(".done.json")]
    assert 2 <= len(done) < 21
    (tmp_path / "night.yaml").write_text(SPEC.format(sleep=0))
    said = end(begin(tmp_path, "--patience", "2"))
    assert "night-00002 done" in said
    assert [r["n"] for r in answer(store)] == [r["rows"] for r in answer(store)] == [400]
    term = find_term(store, "nightly-night")
    assert term is not None and (term.number, term.ended) == (2, True)
    whole = make_store(str(tmp_path / "whole" / "lake"))
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "night.yaml").write_text(SPEC.format(sleep=0))
    end(begin(tmp_path / "whole"))
    assert answer(store) == answer(whole)
    found = sweep(store, Policy(keep_runs=1), fast())
    assert found.dropped == ("night-00001",) and found.doomed == set()  # what it made is part of the run that ended it
    assert answer(store) == answer(whole)
    assert not [v for v in verify(open_catalog(store, Scope(all=True))) if v.problem]


def test_a_night_that_is_stopped_gives_its_lease_back_before_it_tells_and_waits_for_no_listener(tmp_path: Path) -> None:
    (tmp_path / "night.yaml").write_text(SPEC.format(sleep=300))
    store = make_store(str(tmp_path / "lake"))
    with silence(b"") as (url, told):
        night = begin(tmp_path, "--webhook", url)
        wait_for_shards(store, night, 1)
        night.send_signal(signal.SIGTERM)
        while not told:
            assert night.poll() is None
            time.sleep(0.01)
        term = find_term(store, "nightly-night")
        assert term is not None and term.ended
        said, _ = night.communicate(timeout=60)
    assert night.returncode == 143, said
    assert len([text for text in told if text]) == 1 and "the webhook at 127.0.0.1 was not told: TimeoutError" in said
    (tmp_path / "night.yaml").write_text(SPEC.format(sleep=0))
    end(begin(tmp_path, "--patience", "600"))  # which it need not wait for
    assert [r["n"] for r in answer(store)] == [400]
