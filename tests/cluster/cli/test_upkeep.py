"""`miclip gc` says all that it would remove, and refuses what it cannot mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli.app import app
from cluster.stores import make_store
from tests.published import run_spec


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three runs of one pipeline that stand for the same tables."""
    monkeypatch.delenv("MICLIP_STORE", raising=False)
    store = make_store(str(tmp_path / "lake"))
    for _ in range(3):
        run_spec(store, "kind: selftest\nname: p\nrows: 10\n")
    return store.uri


def gc(lake: str, *words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["gc", "--store", lake, *words], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done


def test_records_of_runs_are_shown_also_where_no_stage_goes(lake: str) -> None:
    shown = gc(lake).stdout
    assert "records" in shown and "run p-00002" in shown and "2 runs kept, 1 dropped" in shown
    found = json.loads(gc(lake, "--json").stdout)
    assert [(trash["name"], trash["about"]) for trash in found["records"]] == [("p-00002", "run p-00002")]
    assert found["objects"] == found["records"][0]["objects"] > 3


def test_a_second_removal_has_nothing_to_do(lake: str) -> None:
    gc(lake, "--yes")
    assert "2 runs kept, 0 dropped; 0 objects would be removed" in gc(lake).stdout
    assert "0 objects removed" in gc(lake, "--yes").stdout
    assert "0 objects removed" in gc(lake, "--yes").stdout


def test_what_gc_cannot_mean_is_refused(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pipeline 'typo' has no run" in gc(lake, "--pipeline", "typo", "--yes", code=2).stderr
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "60")
    said = " ".join(gc(lake, "--patience", "60", "--yes", code=2).stderr.split())
    assert "--patience 60: expected at least 90 seconds, 1.5 times the 60 seconds" in said
