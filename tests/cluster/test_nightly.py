"""A night compares with the last one, whatever was run or killed in between, and drops what is old."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.catalog import open_catalog
from cluster.changes import load_changes
from cluster.hold import GC
from cluster.lease import take
from cluster.ledger import load_published
from cluster.nightly import Evening, Held, begin, check_pages, conclude, last_night, lease_name
from cluster.runs import list_runs
from cluster.spec_file import parse_spec, read_spec_file
from cluster.sql import run_sql
from cluster.stores import Store, make_store
from schemas import layout
from schemas.errors import UsageError
from schemas.plans import StageSpec
from tests.lakes import Lake
from tests.made_up_nights import Night, predictions
from tests.paces import Time, fast
from tests.published import run_spec

EXAMPLES = Path(__file__).parents[2] / "jobs/examples"
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


def made_night(lake: Lake, seed: int) -> Evening:
    """A night with two stages whose predictions differ from one night to the next."""
    made = Night(lake)
    for cell in ("acts/a", "acts/b"):
        made.publish(cell, cell, predictions(seed), seed)
    return conclude(lake.store, made.end().run, None, fast())


@pytest.mark.parametrize("damage", [b"x", b"PAR1", None])
def test_a_damaged_part_of_an_old_night_is_a_note_and_only_of_what_is_compared_with_it(
    tmp_path: Path, damage: bytes | None
) -> None:
    lake = Lake(tmp_path)
    made_night(lake, 1)
    stage = next(s for s in open_catalog(lake.store).stages if s.stage.output == "acts/b")
    path = tmp_path / stage.tables["predictions"][0].key
    path.write_bytes(damage or b"\0" * path.stat().st_size)
    second, third = made_night(lake, 2), made_night(lake, 3)
    assert second.problems == [] and second.drift is not None
    assert {row["cell"] for row in second.drift.rows} == {"acts/a"} and second.drift.pairs == 1
    assert [note.split(":")[0] for note in second.drift.notes] == ["acts/b"]
    assert third.problems == [] and third.changes is not None and third.drift is not None
    assert third.changes.before == "nights-00002" and third.drift.notes == [] and third.drift.pairs == 2


def test_a_comparison_that_fails_altogether_is_a_problem_of_that_night_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    night(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr("cluster.nightly.compare_runs", fail)
        second = night(store, 2)
    assert second.problems == ["not compared with night-00001: MemoryError: "] and second.changes is not None
    third = night(store, 3)
    assert third.problems == [] and third.changes is not None and third.changes.before == "night-00002"


def test_a_stage_that_is_published_no_more_is_damage_and_said_how_to_heal(store: Store) -> None:
    run = run_spec(store, SPEC).state.run
    (stage,) = (s.stage.digest for s in open_catalog(store).stages)
    (Path(store.uri.removeprefix("file://")) / layout.published_key(stage)).unlink()
    evening = conclude(store, run, None, fast())
    assert [(found.stage, found.key, found.problem) for found in evening.damaged] == [
        (stage, layout.published_key(stage), "gone")
    ]
    assert [problem.split(":")[0] for problem in evening.problems] == ["published results are damaged"]
    assert layout.published_key(stage) in evening.problems[0] and "To heal: " in evening.problems[0]
    run_spec(store, SPEC)
    assert load_published(store, stage) is not None


def test_pages_that_would_show_nothing_are_refused_before_the_night(store: Store, tmp_path: Path) -> None:
    pages = str(tmp_path / "pages")
    run_spec(store, SPEC)
    spec = parse_spec(SPEC, "night.yaml").pipeline
    with pytest.raises(UsageError, match=r"neither the spec nor a newest run .* a stage of kind explorer"):
        check_pages(store, spec, pages)
    check_pages(store, read_spec_file(EXAMPLES / "demo.yaml").pipeline, pages)
    other = Night(Lake(tmp_path))
    other.add("pages", StageSpec(kind="explorer", method=1, subject="any", output="explorer", params={}), {})
    other.end()
    check_pages(store, spec, pages)


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
