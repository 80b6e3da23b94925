"""The verbs of every night on a command line: nightly, gc."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster.cli.app import app
from cluster.cli.nightly import NotifyOn, Teller
from cluster.lease import Lease, Pace, take
from cluster.runs import load_state
from cluster.stores import make_store
from schemas.errors import Interrupted, StoreUnreachable
from tests.cluster.test_notify import listener
from tests.paces import fast

SPEC = """\
kind: pipeline
name: zoo
stages:
  one: {kind: selftest, subject: one, rows: 30, shard_rows: 20, seed: 0}
  two: {kind: selftest, subject: two, rows: 20}
"""


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("MICLIP_STORE", "MICLIP_WEBHOOK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def lake(tmp_path: Path) -> str:
    (tmp_path / "zoo.yaml").write_text(SPEC)
    return str(tmp_path / "lake")


def call(*words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == code, done.output
    return done


def nightly(lake: str, *words: str, code: int = 0) -> Result:
    spec = str(Path(lake).parent / "zoo.yaml")
    return call("nightly", spec, "--store", lake, "--executor", "serial", *words, code=code)


def as_json(done: Result) -> Any:
    return json.loads(done.stdout)


@pytest.fixture
def beating(lake: str) -> Iterator[Lease]:
    """Another machine's night, which goes on."""
    with take(make_store(lake), "nightly-zoo", fast()._replace(beat=0.05)) as lease:
        yield lease


@pytest.fixture
def short_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a short patience, which must be longer than that of one request."""
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "0.5")


def test_two_nights_say_what_changed_and_a_third_that_nothing_did(lake: str) -> None:
    assert "this is the first run" in nightly(lake).stdout
    second = nightly(lake, "--set", "stages.one.seed=5").stdout
    assert "since zoo-00001: 1 as they were, 1 change\n" in second
    assert "changed       one  one: seed" in second
    third = as_json(nightly(lake, "--set", "stages.one.seed=5", "--json"))
    assert third["changes"]["subjects"] == [] and third["changes"]["before"] == "zoo-00002"
    assert third["exit_code"] == 0 and third["problems"] == [] and third["gc"] is None


def test_a_night_behind_one_that_never_ended_is_not_called_the_first(lake: str) -> None:
    nightly(lake)
    (Path(lake) / "runs" / "zoo-00001" / "tables.json").unlink()
    said = nightly(lake).stdout
    assert "nothing to compare with: no earlier run of its pipeline has finished" in said and "first run" not in said


def test_a_night_that_fails_says_so_to_the_webhook_and_the_next_that_it_recovered(
    lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener(200) as (url, told):
        monkeypatch.setenv("MICLIP_WEBHOOK", url)
        failed = nightly(lake, "--set", "stages.one.error_shards=[1]", code=1)
        nightly(lake, "--notify-on", "news")
        nightly(lake, "--notify-on", "news")  # nothing to tell
        nightly(lake, "--notify-on", "failed")
    assert [message["changes"] for message in told] == [{"failed": ["one"], "new": ["two"]}, {"recovered": ["one"]}]
    assert [message["status"] for message in told] == ["FAILED", "DONE"] and "shard 1" in told[0]["text"]
    assert "T0PSECRET" not in failed.output and not [
        key for key in make_store(lake).list("") if b"T0PSECRET" in make_store(lake).get(key)
    ]


def test_a_webhook_that_is_away_fails_no_night(lake: str) -> None:
    with listener(404) as (url, _):
        done = nightly(lake, "--webhook", url)
    assert "the webhook at 127.0.0.1 was not told: it answered 404" in done.output


def test_a_spec_that_cannot_be_planned_is_told_and_its_exit_code_stays(lake: str) -> None:
    with listener(200) as (url, told):
        Path(lake).parent.joinpath("zoo.yaml").write_text(
            "kind: extract\nname: zoo\nmodel: open_clip:none\nimages: {ref: 'folder:/nowhere'}\nsites: [resid_post.0]\n"
        )
        nightly(lake, "--webhook", url, code=2)
    assert told[0]["status"] == "NOT STARTED" and told[0]["exit_code"] == 2


def test_a_night_that_cannot_begin_is_told_too(lake: str, tmp_path: Path) -> None:
    spec = Path(lake).parent / "zoo.yaml"
    with listener(200) as (url, told):
        right = spec.read_text()
        spec.write_text("kind: pipline\n")
        nightly(lake, "--webhook", url, code=2)
        spec.unlink()
        nightly(lake, "--webhook", url, code=2)
        spec.write_text(right)
        (tmp_path / "a-file").write_text("")
        nightly(str(tmp_path / "a-file"), "--webhook", url, code=3)
    assert [(message["pipeline"], message["status"], message["exit_code"]) for message in told] == [
        ("zoo", "NOT STARTED", 2), ("zoo", "NOT STARTED", 2), ("zoo", "NOT STARTED", 3),
    ]  # fmt: skip


def test_a_night_that_dies_on_its_way_is_told_with_its_run_and_what_became_of_it(
    lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise StoreUnreachable("away")

    with listener(200) as (url, told):
        monkeypatch.setenv("MICLIP_WEBHOOK", url)
        with monkeypatch.context() as patch:
            patch.setattr("cluster.pipeline.run_stages", away)
            nightly(lake, code=3)
        with monkeypatch.context() as patch:
            patch.setattr("cluster.nightly.last_night", away)
            nightly(lake, code=3)
    found = [(message["run"], message["status"], message["exit_code"], message["failures"]) for message in told]
    failures = ["StoreUnreachable: away"]
    assert found == [("zoo-00001", "STOPPED", 3, failures), ("zoo-00002", "DONE", 3, failures)]
    assert [load_state(make_store(lake), message["run"]).status for message in told] == ["STOPPED", "DONE"]


def test_a_reader_of_the_report_that_leaves_changes_nothing_of_what_is_told(
    lake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("cluster.cli.closing.show_report", leave)
    monkeypatch.setattr("cluster.cli.common.os.dup2", lambda *_: None)  # the descriptor is that of the tests
    with listener(200) as (url, told):
        nightly(lake, "--webhook", url)
    assert [(message["run"], message["status"], message["exit_code"]) for message in told] == [("zoo-00001", "DONE", 0)]


def test_pages_of_a_spec_that_makes_none_are_refused_at_once(lake: str, tmp_path: Path) -> None:
    with listener(200) as (url, told):
        refused = nightly(lake, "--pages", str(tmp_path / "pages"), "--webhook", url, code=2)
    assert "stage of kind explorer" in " ".join(refused.output.split()) and told[0]["status"] == "NOT STARTED"
    assert make_store(lake).list("runs") == [] and not (tmp_path / "pages").exists()


def test_a_night_that_is_told_to_end_tries_the_webhook_once() -> None:
    with listener(503) as (url, told):
        teller = Teller(url, NotifyOn.failed)
        with pytest.raises(Interrupted), teller.of_errors("/lake", "zoo"):
            teller.begun("zoo-00001")
            raise Interrupted("signal 15")
    assert [(message["run"], message["status"], message["exit_code"]) for message in told] == [
        ("zoo-00001", "INTERRUPTED", Interrupted.exit_code)
    ]


def test_a_second_night_at_the_same_time_says_so_and_one_that_hangs_is_told_to_whoever_wants_failures(
    lake: str, beating: Lease, short_budget: None
) -> None:
    with listener(200) as (url, told):
        done = nightly(lake, "--patience", "8", "--webhook", url, "--notify-on", "failed")
        assert "nightly-zoo: " in done.stdout and "(term 1) and is at work; nothing was done\n" in done.stdout
        assert told == []  # as when somebody started it by hand
        again = as_json(nightly(lake, "--patience", "8", "--webhook", url, "--notify-on", "failed", "--json"))
    assert again["exit_code"] == 0 and again["times"] == 2
    assert [(message["status"], message["held"], message["exit_code"]) for message in told] == [("HELD", 2, 0)]
    assert "(term 1) and is at work" in told[0]["text"] and "2 starts in a row" in told[0]["text"]
    assert make_store(lake).list("runs") == []


def test_a_night_that_was_killed_is_followed_after_the_patience_that_is_given(lake: str, short_budget: None) -> None:
    take(make_store(lake), "nightly-zoo", Pace(patience=1))
    nightly(lake, "--patience", "1")
    assert "runs/zoo-00001/changes.json" in make_store(lake).list("runs")


def test_a_night_over_a_damaged_lake_fails_says_how_to_heal_it_and_is_whole_after_that(lake: str) -> None:
    nightly(lake)
    before = call("sql", "SELECT * FROM selftest ORDER BY ALL", "--store", lake, "--csv").stdout
    gone, cut = sorted(key for key in make_store(lake).list("tables") if "part-" in key)[:2]
    Path(lake, gone).unlink()
    Path(lake, cut).write_bytes(Path(lake, cut).read_bytes()[:-1])
    with listener(200) as (url, told):
        damaged = as_json(nightly(lake, "--webhook", url, "--notify-on", "failed", "--json", code=1))
    assert [(found["key"], found["problem"].split(":")[0]) for found in damaged["damaged"]] == [
        (gone, "gone"), (cut, "changed"),
    ]  # fmt: skip
    assert gone in told[0]["text"] and "miclip verify --run zoo-00002" in told[0]["text"] and told[0]["exit_code"] == 1
    assert "run the spec again" in call("verify", "--run", "zoo-00002", "--store", lake, code=1).stdout
    for found in damaged["damaged"]:
        Path(lake, found["key"]).unlink(missing_ok=True)
        shutil.rmtree(Path(lake, "stages", found["stage"]), ignore_errors=True)
    assert as_json(nightly(lake, "--json"))["damaged"] == []
    assert call("sql", "SELECT * FROM selftest ORDER BY ALL", "--store", lake, "--csv").stdout == before
    assert as_json(call("verify", "--store", lake, "--all", "--json"))["damaged"] == []


def test_nights_drop_old_runs_when_they_are_told_how_many_stay(lake: str) -> None:
    for seed in (1, 2, 3):
        done = nightly(lake, "--set", f"stages.one.seed={seed}", "--keep-runs", "2")
    assert "1 old run dropped" in done.stdout and "2 runs kept" in done.stdout
    assert {key.split("/")[1] for key in make_store(lake).list("runs")} == {"zoo-00002", "zoo-00003"}
    assert as_json(call("verify", "--store", lake, "--all", "--json"))["damaged"] == []


def test_gc_removes_nothing_until_it_is_told_yes(lake: str) -> None:
    for seed in (1, 2, 3):
        nightly(lake, "--set", f"stages.one.seed={seed}")
    before = make_store(lake).list("")
    shown = call("gc", "--keep-runs", "1", "--store", lake).stdout
    assert "selftest one rows a" in shown and "1 run kept, 2 dropped" in shown and "nothing was removed" in shown
    assert make_store(lake).list("") == before
    kept = as_json(call("gc", "--keep-runs", "1", "--keep", "zoo-00001", "--store", lake, "--json"))
    assert kept["dropped"] == ["zoo-00002"] and not kept["removed"] and len(kept["stages"]) == 1
    assert "removed" in call("gc", "--keep-runs", "1", "--store", lake, "--yes").stdout
    again = as_json(call("gc", "--keep-runs", "1", "--store", lake, "--json"))
    assert again["kept"] == ["zoo-00003"] and again["stages"] == again["leftovers"] == []
    assert call("sql", "SELECT count(*) AS n FROM selftest", "--store", lake, "--csv").stdout == "n\n50\n"
    assert "run 'zoo-00009' is to be kept" in call("gc", "--keep", "zoo-00009", "--store", lake, code=2).output
