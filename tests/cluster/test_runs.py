"""Runs: numbered names that two drivers never share, and which run a reader sees by default."""

from __future__ import annotations

import json
import threading

import pytest
import yaml

from cluster import runs
from cluster.runs import RunOptions, RunState, RunTables, StateKeeper
from cluster.stores.base import Store, make_store
from cluster.stores.posix import PosixStore
from schemas.errors import Cancelled, ClusterUnreachable, Interrupted, UnknownRun
from tests.lossy import LossyStore


@pytest.fixture
def store(tmp_path) -> Store:
    return make_store(str(tmp_path))


def finish(store: Store, pipeline: str, *digests: str, limited: bool = False) -> str:
    """A run that has finished and stands for these stages."""
    run = runs.new_run(store, pipeline, "kind: selftest\n")
    runs.save_tables(store, RunTables(run=run, pipeline=pipeline, limited=limited, stages={"cell": digests}))
    return run


def test_runs_are_numbered_from_one_within_each_pipeline(store):
    names = [runs.new_run(store, pipeline, "") for pipeline in ("zoo", "zoo", "other", "zoo")]
    assert names == ["zoo-00001", "zoo-00002", "other-00001", "zoo-00003"]
    assert runs.list_runs(store) == ["other-00001", "zoo-00001", "zoo-00002", "zoo-00003"]
    assert runs.list_runs(store, "zoo") == ["zoo-00001", "zoo-00002", "zoo-00003"]


def test_a_pipeline_whose_name_ends_in_a_number_is_not_taken_for_another(store):
    assert runs.new_run(store, "zoo-2", "") == "zoo-2-00001"
    assert runs.new_run(store, "zoo", "") == "zoo-00001"
    assert runs.list_runs(store, "zoo") == ["zoo-00001"]


def test_drivers_that_start_at_the_same_moment_get_different_numbers(store):
    names: list[str] = []
    start = threading.Barrier(8)

    def take() -> None:
        start.wait()
        names.append(runs.new_run(store, "zoo", "spec"))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names) == [f"zoo-{n:05d}" for n in range(1, 9)]


def test_a_driver_whose_answer_was_lost_takes_no_second_number_and_shares_none_with_the_same_spec(tmp_path):
    store = LossyStore(str(tmp_path), 1, 2)
    assert [runs.new_run(store, "zoo", "spec") for _ in range(3)] == ["zoo-00001", "zoo-00002", "zoo-00003"]
    assert runs.list_runs(store) == ["zoo-00001", "zoo-00002", "zoo-00003"]


def test_drivers_of_the_same_spec_that_saw_no_other_share_no_number(store, monkeypatch):
    runs.new_run(store, "zoo", "spec")
    monkeypatch.setattr(store, "list", lambda prefix: [])  # as who has listed before the other began
    assert runs.new_run(store, "zoo", "spec") == "zoo-00002"


@pytest.mark.parametrize(
    "text",
    ["# mine\nkind: selftest   # größer\n", "", "kind: selftest", "\n\n", f"kind: selftest\n# taken by {'0' * 32}\n"],
)
def test_the_spec_of_a_run_is_kept_as_it_was_given(store, text):
    run = runs.new_run(store, "zoo", text)
    assert runs.load_spec(store, run) == text
    assert yaml.safe_load(store.get(f"runs/{run}/spec.yaml")) == yaml.safe_load(text)  # for whoever reads it there


def test_the_spec_of_a_run_of_an_earlier_version_is_read_too(store):
    store.create("runs/zoo-00001/spec.yaml", b"kind: selftest\n")
    assert runs.load_spec(store, "zoo-00001") == "kind: selftest\n"


def test_the_state_of_a_run_is_replaced_as_it_goes_on(store):
    run = runs.new_run(store, "zoo", "")
    for status in ("RUNNING", "DONE"):
        runs.save_state(store, RunState(run=run, pipeline="zoo", number=1, status=status))
    assert runs.load_state(store, run).status == "DONE"


def test_what_a_run_stands_for_is_written_once(store):
    run = finish(store, "zoo", "d1", "d2")
    runs.save_tables(store, RunTables(run=run, pipeline="zoo", stages={"cell": ("d3",)}))
    found = runs.load_tables(store, run)
    assert found is not None and found.digests == ("d1", "d2")


def test_a_stage_that_two_cells_share_is_named_once():
    tables = RunTables(run="r", pipeline="p", stages={"a": ("d1", "d2"), "b": ("d2", "d3")})
    assert tables.digests == ("d1", "d2", "d3")


def test_the_newest_finished_run_of_each_pipeline_is_read(store):
    finish(store, "zoo", "old")
    finish(store, "zoo", "new")
    runs.new_run(store, "zoo", "")  # not finished
    finish(store, "nightly", "n")
    assert {tables.run: tables.digests for tables in runs.latest_runs(store)} == {
        "zoo-00002": ("new",),
        "nightly-00001": ("n",),
    }
    assert [tables.run for tables in runs.latest_runs(store, "zoo")] == ["zoo-00002"]


def test_a_small_trial_is_never_the_newest_run(store):
    finish(store, "zoo", "whole")
    finish(store, "zoo", "some", limited=True)
    assert [tables.digests for tables in runs.latest_runs(store)] == [("whole",)]
    finish(store, "only-trials", "some", limited=True)
    assert runs.latest_runs(store, "only-trials") == []


def test_runs_are_counted_as_numbers_beyond_five_digits(store):
    for number in (2, 99999, 100000):
        run = f"zoo-{number:05d}"
        store.create(f"runs/{run}/spec.yaml", b"")
        runs.save_tables(store, RunTables(run=run, pipeline="zoo", stages={"cell": (str(number),)}))
    assert [tables.digests for tables in runs.latest_runs(store)] == [("100000",)]
    assert runs.new_run(store, "zoo", "") == "zoo-100001"


def test_what_is_not_named_like_a_run_is_left_alone(store):
    for folder in ("backup", "zoo-old", "zoo-1", "zoo-00001/copy"):
        store.create(f"runs/{folder}/spec.yaml", b"")
    assert runs.list_runs(store) == []
    assert runs.new_run(store, "zoo", "") == "zoo-00001" and runs.list_runs(store) == ["zoo-00001"]


def test_an_unknown_run_or_pipeline_is_refused_with_what_there_is(store):
    with pytest.raises(UnknownRun, match="there are none yet"):
        runs.load_state(store, "zoo-00001")
    finish(store, "zoo", "d")
    with pytest.raises(UnknownRun, match=r"run 'zoo-00002' is not in .*; there are zoo-00001"):
        runs.load_state(store, "zoo-00002")
    with pytest.raises(UnknownRun, match="run 'zoo-00002'"):
        runs.load_spec(store, "zoo-00002")
    with pytest.raises(UnknownRun, match=r"pipeline 'zo' has no run in .*; there are zoo"):
        runs.latest_runs(store, "zo")


# ---------------------------------------------------------------- submissions, and how runs end


def submitted(store: Store, attempt: int, prefix: str = "zoo-0123abcd") -> str:
    run = runs.new_run(store, "zoo", "")
    runs.save_options(store, run, RunOptions(submission=f"{prefix}-a{attempt}", jobs="http://head:8265"))
    return run


def test_a_run_is_found_by_its_own_name_and_by_that_of_its_submission(store):
    first, second = submitted(store, 1), submitted(store, 2)
    runs.new_run(store, "zoo", "")
    assert runs.resolve_run(store, first) == first
    assert runs.resolve_run(store, "zoo-0123abcd-a1") == first
    assert runs.resolve_run(store, "zoo-0123abcd-a2") == second
    for name in ("zoo-0123abcd-a3", "zoo-fedcba98-a1", "zoo-00009", "zoo"):
        with pytest.raises(UnknownRun, match=name):
            runs.resolve_run(store, name)
    assert [run for run, _ in runs.submitted_runs(store, "zoo-0123abcd")] == [second, first]


def test_of_two_runs_of_one_submission_the_newer_is_meant(store):
    _, newer = submitted(store, 1), submitted(store, 1)  # a cluster that knew of no store counted from one again
    assert runs.resolve_run(store, "zoo-0123abcd-a1") == newer


def running(store: Store) -> RunState:
    return RunState(run=runs.new_run(store, "zoo", ""), pipeline="zoo", number=1, status="RUNNING", seconds=3.0)


@pytest.mark.parametrize(("error", "status"), [(Interrupted("a"), "INTERRUPTED"), (Cancelled("a"), "CANCELLED")])
def test_a_stop_is_written_at_once_and_the_run_is_not_said_to_run_again(store, error, status):
    keeper, state = StateKeeper(store), running(store)
    keeper.save(state)
    keeper.stop(error)
    for _ in range(2):
        found = runs.load_state(store, state.run)
        assert (found.status, found.exit_code, found.message, found.seconds) == (status, 130, "a", 3.0)
        keeper.save(state.model_copy(update={"seconds": 3.0}))  # work that was under way tells what it has done
    keeper.save(state.model_copy(update={"status": "DONE", "exit_code": 0}))  # and may have been the last of it
    assert runs.load_state(store, state.run).status == "DONE"


def test_a_stop_after_the_end_changes_nothing(store):
    keeper, state = StateKeeper(store), running(store)
    keeper.save(state.model_copy(update={"status": "FAILED", "exit_code": 1}))
    keeper.stop(Interrupted("late"))
    assert runs.load_state(store, state.run).status == "FAILED"


def test_a_stop_before_the_first_state_is_what_that_state_says(store):
    keeper, state = StateKeeper(store), running(store)
    keeper.stop(Interrupted("early"))
    keeper.save(state)
    assert runs.load_state(store, state.run).status == "INTERRUPTED"


class HeldStore(PosixStore):
    """A folder in which the first write of one status hangs until it is let go, and which lists what landed, in order."""

    def __init__(self, root: str, status: str) -> None:
        super().__init__(root)
        self.status, self.landed = status, list[str]()
        self.hangs, self.let_go = threading.Event(), threading.Event()

    def replace(self, key: str, data: bytes) -> None:
        status = json.loads(data)["status"]
        if status == self.status and not self.hangs.is_set():
            self.hangs.set()
            assert self.let_go.wait(10)
        super().replace(key, data)
        self.landed.append(status)


def test_a_stop_does_not_wait_for_a_write_that_hangs_and_is_not_undone_when_that_lands(tmp_path):
    store = HeldStore(str(tmp_path), "RUNNING")
    keeper, state = StateKeeper(store), running(store)
    working = threading.Thread(target=keeper.save, args=(state,))
    working.start()
    assert store.hangs.wait(10)
    stopping = threading.Thread(target=keeper.stop, args=(Interrupted("a"),))
    stopping.start()
    stopping.join(2)
    assert store.landed == ["INTERRUPTED"] and keeper.stop_saved is not None
    store.let_go.set()
    working.join()
    assert store.landed == ["INTERRUPTED", "RUNNING", "INTERRUPTED"]
    assert runs.load_state(store, state.run).message == "a"


def test_a_stop_that_is_overtaken_by_the_end_does_not_undo_it(tmp_path):
    store = HeldStore(str(tmp_path), "INTERRUPTED")
    keeper, state = StateKeeper(store), running(store)
    keeper.save(state)
    stopping = threading.Thread(target=keeper.stop, args=(Interrupted("a"),))
    stopping.start()
    assert store.hangs.wait(10)
    ending = threading.Thread(target=keeper.save, args=(state.model_copy(update={"status": "DONE", "exit_code": 0}),))
    ending.start()
    ending.join(2)
    assert store.landed == ["RUNNING", "DONE"]
    store.let_go.set()
    stopping.join()
    assert store.landed == ["RUNNING", "DONE", "INTERRUPTED", "DONE"]


def test_what_ends_a_run_gives_it_its_status_and_exit_code():
    errors = (Interrupted(), KeyboardInterrupt(), Cancelled(), ClusterUnreachable(), UnknownRun(), ValueError())
    assert [(runs.status_of(error), runs.get_exit_code(error)) for error in errors] == [
        ("INTERRUPTED", 130),
        ("INTERRUPTED", 130),
        ("CANCELLED", 130),
        ("STOPPED", 3),
        ("STOPPED", 2),
        ("STOPPED", 1),
    ]
