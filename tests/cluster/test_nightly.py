"""A night compares with the last one, whatever was run or killed in between, and drops what is old."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.catalog import open_catalog
from cluster.changes import load_changes
from cluster.hold import GC
from cluster.lease import take
from cluster.nightly import Evening, Held, begin, conclude, last_night, lease_name
from cluster.runs import list_runs
from cluster.sql import run_sql
from cluster.stores import Store, make_store
from tests.paces import Time, fast
from tests.published import run_spec

SPEC = "kind: selftest\nname: night\nrows: 30\nshard_rows: 20\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path))


def night(store: Store, seed: int, keep_runs: int | None = None) -> Evening:
    run = run_spec(store, SPEC, f"seed={seed}").state.run
    return conclude(store, run, keep_runs, fast())


def test_the_first_night_is_all_new_and_the_next_says_what_changed(store: Store) -> None:
    first, second = night(store, 1), night(store, 2)
    assert [c.change for c in first.changes.subjects] == ["new"] and first.drift is None
    assert [(c.change, c.why) for c in second.changes.subjects] == [("changed", ("seed",))]
    assert load_changes(store, "night-00002") == second.changes and second.problems == []
    assert run_sql(open_catalog(store), "SELECT count(*) AS n FROM drift").read_all().to_pylist() == [{"n": 0}]


def test_a_night_that_was_killed_behind_its_run_is_told_by_the_next(store: Store) -> None:
    night(store, 1)
    run_spec(store, SPEC, "seed=2")  # and its driver is no more
    again = night(store, 2)
    assert again.changes.before == "night-00001" and [c.change for c in again.changes.subjects] == ["changed"]
    assert night(store, 2).changes.subjects == ()


def test_runs_by_hand_before_the_first_night_are_what_it_is_compared_with(store: Store) -> None:
    run_spec(store, SPEC, "seed=1")
    run_spec(store, SPEC, "seed=2")
    assert last_night(store, "night-00003") == "night-00002" and last_night(store, "night-00001") is None


def test_old_nights_of_this_pipeline_are_dropped_and_others_stay(store: Store) -> None:
    for seed in (1, 2):
        run_spec(store, SPEC.replace("name: night", "name: other"), f"seed={seed + 10}")
    for seed in range(4):
        evening = night(store, seed, keep_runs=2)
    assert list_runs(store) == ["night-00003", "night-00004", "other-00001", "other-00002"]
    assert evening.swept.dropped == ("night-00002",) and evening.problems == []
    rows = run_sql(open_catalog(store), "SELECT count(*) AS n FROM selftest").read_all().to_pylist()
    assert rows == [{"n": 60}]  # the newest night and the newest of the other pipeline


def test_a_sweep_that_is_going_on_is_a_problem_and_not_waited_for(store: Store) -> None:
    run = run_spec(store, SPEC).state.run
    holder = take(store, GC, fast())
    evening = conclude(store, run, 1, Time(during=holder.beat).pace())
    assert evening.swept is None and "gc: " in evening.problems[0]
    assert evening.changes is not None


def test_starts_that_find_one_night_at_work_are_counted_until_it_ends(store: Store) -> None:
    for _ in range(2):
        holder = take(store, lease_name("night"), fast())
        found = [begin(store, "night", Time(during=holder.beat).pace()) for _ in range(3)]
        assert [held.times for held in found if isinstance(held, Held)] == [1, 2, 3]
        holder.release()
    with begin(store, "night", fast()) as lease:
        assert lease.term == 3
