"""The last words of a run that failed: every cause, and what waited for it as one number."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli.closing import show_failures, show_report
from cluster.pipeline import WAITS, RunReport
from cluster.planned import READS
from cluster.runs import RunState, StageState
from cluster.stores import make_store


def last_words(failures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    state = RunState(run="zoo-00001", pipeline="zoo", number=1, status="FAILED")
    show_failures(RunReport(state, failures), make_store(str(tmp_path)), tmp_path / "log")
    return capsys.readouterr().err.splitlines()


def test_a_sweep_that_failed_names_its_causes_and_counts_what_waited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverged = [f"sae/{model} sae: shard 0: seed {seed} of {model} diverged" for model in "ab" for seed in range(4)]
    waiting = [f"sae/{model} summary: {WAITS} sae/{model} sae is not published" for model in "ab" for _ in range(4)]
    lines = last_words([*diverged[:4], *waiting[:5], *diverged[4:]], tmp_path, capsys)
    assert lines[:8] == [f"  ✗ {failure}" for failure in diverged]
    assert lines[8:11] == [
        "  4 stages wait: its input stage sae/a sae is not published",
        "  1 stage waits: its input stage sae/b sae is not published",
        "  mend what failed and retry, or take it out of the spec: what can do without it is made then",
    ]


def test_of_many_causes_some_are_named_and_the_rest_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = [f"t summary: {WAITS} s{n} sae is not published" for n in range(10)]
    lines = last_words(["s sae: shard 0: diverged", *waiting, waiting[-1]], tmp_path, capsys)
    assert lines[8] == "  1 stage waits: its input stage s7 sae is not published"
    assert lines[9].startswith("  3 stages more wait for others; mend what failed")


def test_cells_that_cannot_be_planned_because_of_another_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = [f"{stage}/b: {READS} acts/b, which cannot be planned" for stage in ("sae", "features")]
    lines = last_words(["acts/b: b: nothing at /b", *reading], tmp_path, capsys)
    assert lines[:2] == ["  ✗ acts/b: b: nothing at /b", "  2 stages wait: it reads acts/b, which cannot be planned"]


def test_where_all_wait_each_says_for_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = [f"features/a features: {WAITS} 0{seed} is not published" for seed in range(2)]
    assert last_words(waiting, tmp_path, capsys)[:2] == [f"  ✗ {failure}" for failure in waiting]


def test_stages_that_failed_alike_are_named_once_with_their_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = [f"names/demo:a {name}: shard {shard}: BadSpec: no column" for shard, name in enumerate("xyz")]
    failures += ["names/demo:a w: shard 0: BadSpec: no label"]
    lines = last_words(failures, tmp_path, capsys)
    assert lines[:2] == [f"  ✗ {failures[0]}  (and 2 stages more alike)", f"  ✗ {failures[3]}"]
    assert "more alike" not in "".join(lines[2:])


@pytest.mark.parametrize(("kind", "offered"), [("extract", False), ("describe", True)])
def test_every_command_that_is_offered_names_the_store(
    kind: str, offered: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(str(tmp_path))
    stage = StageState(
        digest="0" * 20, cell="s", kind=kind, subject="x", output="o", detail="", state="to do", shards_done=0, shards=1
    )
    for limited, query, page in [(False, "", ""), (True, " --run zoo-00001", " zoo-00001")]:
        state = RunState(run="zoo-00001", pipeline="zoo", number=1, status="DONE", limited=limited, stages=(stage,))
        show_report(RunReport(state, []), store, tmp_path / "log")
        said = capsys.readouterr().out
        assert f'next: miclip sql --store {store.uri}{query} "SELECT' in said
        assert (f"miclip report{page} --store {store.uri}\n" in said) == offered
