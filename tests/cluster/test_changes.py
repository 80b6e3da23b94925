"""What changed since the run before is said subject by subject, with reasons that a person can act on."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.changes import changes_of, find_changes, load_changes, run_before, save_changes
from cluster.runs import RunState, StageState
from cluster.stores import Store, make_store
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


def test_changes_are_kept_with_their_run(store: Store) -> None:
    name = run(store)
    changes = changes_of(store, name)
    assert load_changes(store, name) is None
    save_changes(store, changes)
    assert load_changes(store, name) == changes
