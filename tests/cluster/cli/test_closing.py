"""The last words of a run that failed: every cause, and what waited for it as one number."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli.closing import show_failures
from cluster.pipeline import WAITS, RunReport
from cluster.runs import RunState
from cluster.stores import make_store


def last_words(failures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    state = RunState(run="zoo-00001", pipeline="zoo", number=1, status="FAILED")
    show_failures(RunReport(state, failures), make_store(str(tmp_path)), tmp_path / "log")
    return capsys.readouterr().err.splitlines()


def test_a_sweep_that_failed_names_its_causes_and_counts_what_waited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverged = [f"sae/{model} sae: shard 0: seed {seed} of {model} diverged" for model in "ab" for seed in range(4)]
    waiting = [f"sae/{model} summary: {WAITS} 0{seed} is not published" for model in "ab" for seed in range(4)]
    lines = last_words(diverged[:4] + waiting[:4] + diverged[4:] + waiting[4:], tmp_path, capsys)
    assert lines[:8] == [f"  ✗ {failure}" for failure in diverged]
    assert lines[8] == "  8 stages not begun, because inputs of theirs are missing"


def test_where_all_wait_each_says_for_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = [f"features/a features: {WAITS} 0{seed} is not published" for seed in range(2)]
    assert last_words(waiting, tmp_path, capsys)[:2] == [f"  ✗ {failure}" for failure in waiting]
