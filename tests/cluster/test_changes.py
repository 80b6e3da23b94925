"""What changed since the run before is said subject by subject, with reasons that a person can act on."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from cluster.changes import MADE_FROM, Change, changes_of, find_changes, load_changes, run_before, save_changes
from cluster.runs import RunState, StageState
from cluster.stores import Store, make_store
from schemas import layout
from schemas.plans import Published, StageSpec
from tests.published import run_spec

ZOO = """\
kind: pipeline
name: zoo
stages:
  one: {{kind: selftest, subject: one, rows: {one}, shard_rows: 20{fails}}}
  two: {{kind: selftest, subject: two, rows: 10}}
  both: {{kind: selftest, reads: one, subject: three, rows: 10}}
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path))


def run(store: Store, one: int = 10, fails: bool = False) -> str:
    return run_spec(store, ZOO.format(one=one, fails=", error_shards: [0]" if fails else "")).state.run


def words(store: Store, name: str) -> dict[str, str]:
    return {change.subject: change.change for change in changes_of(store, name).subjects}


def test_the_first_run_is_all_new_and_the_same_again_changes_nothing(store: Store) -> None:
    assert words(store, run(store)) == {"one": "new", "two": "new", "three": "new"}
    again = changes_of(store, run(store))
    assert (again.before, again.subjects, again.unchanged) == ("zoo-00001", (), 3)


def test_what_changed_says_why_and_what_follows_says_from_what(store: Store) -> None:
    run(store)
    found = {change.subject: change for change in changes_of(store, run(store, one=12)).subjects}
    assert found["one"].change == "changed" and found["one"].why == ("rows",) and found["one"].cells == ("one",)
    assert found["three"].change == "changed" and found["three"].why == ("what it is made from",)
    assert "two" not in found


def test_what_fails_goes_on_failing_and_recovers(store: Store) -> None:
    run(store)
    first = run(store, one=13, fails=True)
    assert words(store, first) == {"one": "failed", "three": "failed"}
    found = {change.subject: change.why for change in changes_of(store, first).subjects}
    assert found["one"][0].startswith("shard 0: ") and found["three"] == (
        "its input stage one rows a seed 0 is not published",
    )
    assert words(store, run(store, one=13, fails=True)) == {"one": "still failing", "three": "still failing"}
    assert words(store, run(store, one=13)) == {"one": "recovered", "three": "recovered"}


VANISHED = """\
kind: pipeline
name: zoo
images: {{ref: "world:seed=0,n=4"}}
matrix: {{model: ["demo:clip-p8", "{model}"]}}
stages:
  acts: {{kind: extract, outputs: [embeddings]}}
  check: {{kind: selftest, reads: acts, subject: all, rows: 10}}
"""


@pytest.mark.parametrize("known_before", [True, False])
def test_a_model_whose_folder_is_away_fails_and_recovers(store: Store, tmp_path: Path, known_before: bool) -> None:
    """What reads all models waits, and is called by the name that its stages have where they are planned."""
    folder, away = tmp_path / "model", tmp_path / "away"
    shutil.copytree(str(files("miclip_core") / "world" / "zoo" / "clip-p8"), folder if known_before else away)
    model = f"open_clip:clip-p8@file:{folder}"

    def night() -> dict[str, Change]:
        name = run_spec(store, VANISHED.format(model=model)).state.run
        return {change.subject: change for change in changes_of(store, name).subjects if change.change != "new"}

    if known_before:
        assert night() == {}
        folder.rename(away)
    what_reads_all = "all" if known_before else "check"
    first = night()
    assert {s: change.change for s, change in first.items()} == {model: "failed", what_reads_all: "failed"}
    assert first[model].cells == (f"acts/{model}",) and f"nothing at {folder}" in first[model].why[0]
    assert {s: change.change for s, change in night().items()} == {model: "still failing", "check": "still failing"}
    away.rename(folder)
    assert {s: change.change for s, change in night().items()} == {model: "recovered", "all": "recovered"}
    assert night() == {}


def test_what_is_no_longer_asked_for_is_gone(store: Store) -> None:
    run(store)
    text = ZOO.format(one=10, fails="").replace("  two: {kind: selftest, subject: two, rows: 10}\n", "")
    assert words(store, run_spec(store, text).state.run) == {"two": "gone"}


def test_a_failed_run_is_the_one_before_and_one_that_never_ended_is_not(store: Store) -> None:
    first = run(store)
    run_spec_begun = store.create("runs/zoo-00002/spec.yaml", b"")
    third = run(store, one=13, fails=True)
    assert run_spec_begun and third == "zoo-00003"
    assert run_before(store, third) == first and run_before(store, first) is None
    assert run_before(store, "zoo-00009") == third


def test_digests_in_the_detail_of_a_stage_do_not_make_it_another_one() -> None:
    def state(digest: str, detail: str) -> RunState:
        stage = StageState(
            digest=digest, cell="names", kind="describe", subject="m", output="names", detail=detail, state="published"
        )
        return RunState(run=f"zoo-0000{digest}", pipeline="zoo", number=1, status="DONE", stages=(stage,))

    before, now = state("1", "features of sae:0123abcd"), state("2", "features of sae:fedc4321")
    store = make_store("/nowhere")
    (change,) = find_changes(store, now, before).subjects
    assert change.change == "changed" and change.cells == ("names",)


def test_digests_in_the_settings_of_a_stage_are_no_reason(tmp_path: Path) -> None:
    store = make_store(str(tmp_path))

    def state(made_from: str, k: int) -> RunState:
        members = [{"sae": f"{made_from}0123456789ab"}]
        params = {"between": f"features of sae:{made_from}", "members": members, "k": k}
        stage = StageSpec(kind="pairs", method=1, subject="m", output="pair", params=params, inputs={"a": made_from})
        text = Published(stage=stage, tables={}, content=f"{made_from} {k}").model_dump_json()
        store.create(layout.published_key(stage.digest), text.encode())
        found = StageState(
            digest=stage.digest, cell="shared", kind="pairs", subject="m", output="pair", state="published"
        )
        return RunState(run="zoo-00001", pipeline="zoo", number=1, status="DONE", stages=(found,))

    def why(before: RunState, now: RunState) -> tuple[str, ...]:
        (change,) = find_changes(store, now, before).subjects
        return change.why

    first = state("0123abcd", 3)
    assert why(first, state("fedc4321", 3)) == (MADE_FROM,) and why(first, state("fedc4321", 4)) == ("k",)


def test_changes_are_kept_with_their_run(store: Store) -> None:
    name = run(store)
    changes = changes_of(store, name)
    assert load_changes(store, name) is None
    save_changes(store, changes)
    assert load_changes(store, name) == changes
