"""Whatever is swept, cut short or run at the same time: every kept run reads all its tables, and what is removed can be made again."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.catalog import Scope, open_catalog, verify
from cluster.events import Event, EventLog, read_events
from cluster.executor import SerialExecutor, StopFlag
from cluster.gc import look, sweep
from cluster.hold import GC, Holds, Visit, load_holds, load_visit
from cluster.lease import Pace, take
from cluster.ledger import load_done
from cluster.parquet import sha256
from cluster.pipeline import PipelineRun, RunReport
from cluster.planned import plan_pipeline
from cluster.retention import Policy
from cluster.run import run_stages
from cluster.runs import (
    RunState,
    RunTables,
    list_runs,
    load_spec,
    load_state,
    load_tables,
    new_run,
    save_state,
    save_tables,
)
from cluster.spec_file import parse_spec
from cluster.stores import Store, make_store
from cluster.stores.posix import PosixStore
from cluster.stores.probe import WRITABLE, check_writable, probe
from schemas import layout
from schemas.errors import UnknownRun
from schemas.plans import StoredArtifact
from tests.paces import Time, fast
from tests.published import run_spec

ROOT = Path(__file__).parent.parent.parent
CHAIN = """\
kind: pipeline
name: {name}
stages:
  first: {{kind: selftest, rows: 30, shard_rows: 20, seed: {first}}}
  second: {{kind: selftest, reads: first, rows: 20, shard_rows: 20, seed: {second}{fails}}}
"""


def run(
    store: Store, first: int, second: int = 0, name: str = "p", fails: bool = False, pace: Pace | None = None
) -> RunReport:
    """A run of two stages, of which one reads the other; runs with the same `first` share that one.

    pace: at which it waits for a sweep; unless one is given it takes no time to see that a sweep is dead.
    """
    broken = ", error_shards: [0]" if fails else ""
    return run_spec(store, CHAIN.format(name=name, first=first, second=second, fails=broken), pace=pace or fast())


def inspect(store: Store, first: int, second: int = 0, pace: Pace | None = None, holds: bool = True) -> list[str]:
    """The same stages made without a run, as `plan --inspect` makes facts; their names.

    holds: whether it says what it makes; a version of ours that is too old does not.
    """
    spec = parse_spec(CHAIN.format(name="p", first=first, second=second, fails=""), "x.yaml").pipeline
    plans = [(plan, needs) for _, plan, needs in plan_pipeline(spec, store).plans()]
    with Visit(store, pace or fast()) as visit:
        visit.add(plan for plan, _ in plans if holds)
        run_stages(plans, store, SerialExecutor(store.uri), EventLog(), StopFlag())
    return [plan.digest for plan, _ in plans]


def objects_of(store: Store, name: str) -> dict[str, str]:
    """Key -> sha256 of every part and artifact that a run stands for."""
    catalog = open_catalog(store, Scope(run=name))
    keys = [part.key for p in catalog.stages for parts in p.tables.values() for part in parts]
    return {key: sha256(store.get(key)) for key in keys}


def damage(store: Store) -> list[str]:
    """What `verify --all` finds, over everything that is published."""
    return [verdict.key for verdict in verify(open_catalog(store, Scope(all=True))) if verdict.problem]


def stages(store: Store) -> set[str]:
    return {key.split("/")[1] for key in store.list("stages")}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path / "lake"))


# ---------------------------------------------------------------- what is kept


def test_what_only_dropped_runs_name_goes_and_what_is_shared_stays(store: Store) -> None:
    run(store, first=1, second=1)
    run(store, first=1, second=2)
    run(store, first=3, second=3)
    before = {name: objects_of(store, name) for name in ("p-00001", "p-00002", "p-00003")}
    shared = load_tables(store, "p-00001").stages["first"][0]
    alone = load_tables(store, "p-00001").stages["second"][0]
    found = sweep(store, Policy(keep_runs=2), fast())
    assert found.kept == ("p-00002", "p-00003") and found.dropped == ("p-00001",)
    assert found.doomed == {alone} and shared in stages(store)
    assert not [key for key in store.list("") if alone in key or "p-00001" in key]
    assert {name: objects_of(store, name) for name in found.kept} == {name: before[name] for name in found.kept}
    assert damage(store) == []
    with pytest.raises(UnknownRun):
        open_catalog(store, Scope(run="p-00001"))
    assert run(store, first=1, second=1).state.run == "p-00004"  # a number is never given twice
    assert objects_of(store, "p-00004") == before["p-00001"]


def test_looking_removes_nothing_and_names_the_same(store: Store) -> None:
    for seed in range(3):
        run(store, seed)
    before = store.list("")
    found = look(store, Policy(keep_runs=1), fast())
    assert store.list("") == before
    assert found.doomed == sweep(store, Policy(keep_runs=1), fast()).doomed and len(found.doomed) == 4
    assert found.bytes > 0 and {trash.about.split()[0] for trash in found.stages} == {"selftest"}


def test_of_runs_that_stand_for_the_same_tables_the_newest_and_the_first_stay(store: Store) -> None:
    for seed in (1, 2, 2, 2, 2):
        run(store, seed)
    assert look(store, Policy(keep_runs=1), fast()).dropped == ("p-00001", "p-00003", "p-00004")
    before = objects_of(store, "p-00003")
    found = sweep(store, Policy(keep_runs=9), fast())
    assert found.dropped == ("p-00003", "p-00004") and found.stages == ()
    assert objects_of(store, "p-00005") == before and damage(store) == []
    assert not [key for key in store.list("") if "p-00003" in key]


def test_the_newest_whole_run_stays_when_those_after_it_failed_in_part(store: Store) -> None:
    run(store, 1)
    run(store, 2)
    for seed in (3, 4):
        assert run(store, seed, fails=True).exit_code == 1
    found = sweep(store, Policy(keep_runs=1), fast())
    assert found.kept == ("p-00002", "p-00004") and found.dropped == ("p-00001", "p-00003")
    assert open_catalog(store, Scope(run="p-00002")).tables == {"selftest": 50, "selftest_summary": 2}


def test_the_shards_of_a_kept_run_that_failed_stay_for_its_retry(store: Store) -> None:
    text = CHAIN.format(name="p", first=1, second=1, fails="")
    report = run_spec(store, text, "stages.first.error_shards=[1]")
    digest = report.state.stages[0].digest
    sweep(store, Policy(keep_runs=1), fast())
    assert layout.done_key(digest, 0) in store.list("stages")


def test_runs_of_other_pipelines_and_pinned_ones_stay(store: Store) -> None:
    for seed in range(3):
        run(store, seed, name="p")
        run(store, seed + 10, name="q")
    assert look(store, Policy(1, pipeline="p"), fast()).dropped == ("p-00001", "p-00002")
    assert look(store, Policy(1, pinned=frozenset({"q-00001"})), fast()).dropped == ("p-00001", "p-00002", "q-00002")
    with pytest.raises(UnknownRun, match="p-00009"):
        look(store, Policy(1, pinned=frozenset({"p-00009"})), fast())


def test_stages_that_no_run_names_stay_until_enough_runs_finished_without_them(store: Store) -> None:
    run(store, 0)
    made = inspect(store, 7)[0]
    assert made in sweep(store, Policy(keep_runs=2), fast()).young
    run(store, 1)
    assert made in sweep(store, Policy(keep_runs=2), fast()).young  # one run has finished since
    run(store, 2)
    assert sweep(store, Policy(keep_runs=2), fast()).doomed >= {made}
    assert made not in stages(store)


def test_they_do_not_stay_for_ever_where_nothing_changes(store: Store) -> None:
    run(store, 0)
    made = inspect(store, 7)[0]
    for night in range(4):  # of which all but two are dropped
        assert made in stages(store), night
        sweep(store, Policy(keep_runs=4), fast())
        run(store, 0)
    assert len(list_runs(store)) == 3 and sweep(store, Policy(keep_runs=4), fast()).doomed >= {made}


def test_a_stage_that_a_kept_plan_or_spec_only_mentions_stays(store: Store) -> None:
    digest = run(store, 1).state.stages[0].digest
    for seed in (2, 3):
        run(store, seed)
    new_run(store, "r", f"kind: extract\nsae: sae:{digest[:6]}\n")  # begun, and not a word since
    found = look(store, Policy(keep_runs=1), fast())
    assert "p-00001" in found.dropped and digest not in found.doomed
    plan = parse_spec(CHAIN.format(name="s", first=9, second=9, fails=""), "x.yaml").pipeline
    assert Holds(store, "r-00001").add(p for _, p, _ in plan_pipeline(plan, store).plans())


def test_what_a_kept_stage_was_made_from_stays_though_no_kept_run_names_it(store: Store) -> None:
    """As an SAE that the spec of another pipeline names by its digest."""
    first, second = run(store, 1).state.stages
    name = new_run(store, "q", "kind: other")
    save_state(store, RunState(run=name, pipeline="q", number=1, status="DONE", stages=(second,)))
    save_tables(store, RunTables(run=name, pipeline="q", stages={"second": (second.digest,)}))
    run(store, 2)
    found = sweep(store, Policy(keep_runs=1), fast())
    assert found.dropped == ("p-00001",) and found.doomed == set() and first.digest in stages(store)


def test_leftovers_of_published_stages_go_and_what_is_published_stays(store: Store) -> None:
    report = run(store, 1)
    digest = report.state.stages[0].digest
    published = objects_of(store, "p-00001")
    folder = next(key for key in published if digest in key).rsplit("/", 1)[0]
    strays = [
        layout.keep_key(digest, 0, 7),
        layout.keep_key(digest, 0, 7, "weights"),
        f"{folder}/part-00000-0.a1.parquet",
    ]
    strays += [layout.artifact_key(digest, 0, "sums")]
    for key in strays:
        store.create(key, b"left by a worker that was killed")
    gone = [*strays, layout.done_key(digest, 0)]  # a shard without its sums is not done, were the stage made again
    assert [trash.keys for trash in look(store, Policy(), fast()).leftovers] == [tuple(sorted(gone))]
    sweep(store, Policy(), fast())
    assert not set(gone) & set(store.list("")) and objects_of(store, "p-00001") == published


def test_a_stage_whose_sums_went_before_is_made_again_after_a_sweep_that_was_killed(
    three: Path, tmp_path: Path
) -> None:
    store = make_store(uri := copy(three, tmp_path / "lake"))
    expected, digest = objects_of(store, "p-00001"), load_tables(store, "p-00001").stages["first"][0]
    sums = StoredArtifact(name="sums", key=layout.artifact_key(digest, 0, "sums"), bytes=3, sha256=sha256(b"sum"))
    store.create(sums.key, b"sum")
    marker = load_done(store, digest, 0).model_copy(update={"artifacts": (sums,)})
    store.replace(layout.done_key(digest, 0), marker.canonical_json().encode())
    sweep(store, Policy(keep_runs=3), fast())  # which takes the sums of a stage that stays
    assert not store.exists(sums.key)
    assert kill_a_sweep(uri, Policy(keep_runs=1), 1000, before=f"{digest}/shards/")
    assert not store.exists(layout.published_key(digest))
    assert run(store, 1).exit_code == 0
    assert objects_of(store, "p-00004") == expected and damage(store) == []


def test_leftovers_stay_while_a_run_that_works_on_their_stage_goes_on(store: Store) -> None:
    report = run(store, 1)
    key = layout.keep_key(report.state.stages[0].digest, 0, 7)
    store.create(key, b"of a worker that is not done yet")
    name = new_run(store, "p", "spec")
    save_state(store, RunState(run=name, pipeline="p", number=2, status="RUNNING", stages=report.state.stages))
    sweep(store, Policy(), fast())
    assert key in store.list("stages")


# ---------------------------------------------------------------- runs that go on at the same time


def begun(store: Store, name: str = "p") -> str:
    """A run that holds the stages of seed 1, and of which nothing else is known."""
    pipeline = parse_spec(CHAIN.format(name=name, first=1, second=1, fails=""), "x.yaml").pipeline
    name = new_run(store, name, "spec")
    Holds(store, name).add(p for _, p, _ in plan_pipeline(pipeline, store).plans())
    return name


def test_a_run_that_lives_keeps_what_it_holds_however_many_have_finished_since(store: Store) -> None:
    run(store, 1, 1)
    name = begun(store)
    for seed in (5, 6):
        run(store, seed)
    beats = iter(range(1000))
    alive = Time(during=lambda: store.replace(layout.alive_key(name), b"%d" % next(beats))).pace()
    found = look(store, Policy(keep_runs=1), alive)
    assert set(found.kept) == {name, "p-00004"} and found.dropped == ("p-00001", "p-00003")
    assert len(found.doomed) == 2 and not found.doomed & set(load_tables(store, "p-00001").digests)
    silent = look(store, Policy(keep_runs=1), fast())  # the same run, once nothing was heard of it for our patience
    assert name in silent.dropped and silent.doomed >= set(load_tables(store, "p-00001").digests)


class Watched(PosixStore):
    """A folder that calls `at` before its call number `when`."""

    def __init__(self, root: str, when: int, at: Callable[[], None]) -> None:
        super().__init__(root)
        self.calls, self._when, self._at, self._lock = 0, when, at, threading.Lock()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return self._counted(found) if name in ("create", "replace", "delete", "get", "size", "list") else found

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            with self._lock:
                self.calls += 1
                due = self.calls == self._when
            if due:
                self._at()
            return call(*arguments)

        return counted


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which a sweep that keeps one run dooms the stages of seeds 1 and 2."""
    folder = tmp_path_factory.mktemp("three")
    for seed in (1, 2, 3):
        run(make_store(str(folder)), seed)
    return folder


def copy(three: Path, to: Path) -> str:
    return str(shutil.copytree(three, to))


def during_a_sweep(uri: str, policy: Policy, when: int, work: Callable[[Store, Pace], object]) -> int:
    """Somebody begins to work at one call of a sweep, which goes on once they wait or have ended. Its calls; 0 if they
    were fewer."""
    free, troubles = threading.Event(), []

    def wait(seconds: float) -> None:
        free.set()
        threading.Event().wait(0.002)

    def do() -> None:
        try:
            work(make_store(uri), Pace(0.01, 60, sleep=wait))
        except BaseException as trouble:
            troubles.append(trouble)
        finally:
            free.set()

    thread = threading.Thread(target=do)

    def begin() -> None:
        thread.start()
        assert free.wait(60)

    store = Watched(uri, when, begin)
    sweep(store, policy, fast()._replace(beat=0.01))
    if thread.ident is None:
        return 0
    thread.join(60)
    assert not troubles
    return store.calls


def begin_during_a_sweep(three: Path, folder: Path, when: int) -> int:
    """A run of seed 1 begins at one call of a sweep that dooms it."""
    uri = copy(three, folder)
    store, reports = make_store(uri), []
    expected = objects_of(store, "p-00001")
    calls = during_a_sweep(uri, Policy(keep_runs=2), when, lambda s, pace: reports.append(run(s, 1, pace=pace)))
    if calls:
        assert [report.exit_code for report in reports] == [0]
        assert objects_of(store, "p-00004") == expected and damage(store) == []
        assert objects_of(store, "p-00003")
        assert "p-00004" in list_runs(store) and load_state(store, "p-00004").status == "DONE"
        tables = set(load_tables(store, "p-00004").digests)
        assert load_spec(store, "p-00004") and load_holds(store, "p-00004") >= tables
    return calls


def inspect_during_a_sweep(three: Path, folder: Path, when: int, unfinished: bool) -> int:
    """The stages of seed 1, which are doomed, are made without a run at one call of the sweep."""
    uri = copy(three, folder)
    store = make_store(uri)
    if unfinished:  # as when the driver was killed before its last step
        for digest in load_tables(store, "p-00001").digests:
            store.delete(layout.published_key(digest))
    made: list[str] = []
    calls = during_a_sweep(uri, Policy(keep_runs=1), when, lambda s, pace: made.extend(inspect(s, 1, pace=pace)))
    if calls:
        assert {digest for digest in made if store.exists(layout.published_key(digest))} == set(made)
        assert damage(store) == [] and objects_of(store, "p-00003")
        assert set(look(store, Policy(keep_runs=3), fast()).young) >= set(made)
        assert run(store, 1).exit_code == 0 and damage(store) == []
    return calls


@pytest.mark.parametrize("when", [8, 40])
def test_a_run_that_begins_during_a_sweep_loses_nothing(three: Path, tmp_path: Path, when: int) -> None:
    assert begin_during_a_sweep(three, tmp_path / "lake", when)


@pytest.mark.slow
def test_a_run_that_begins_at_any_call_of_a_sweep_loses_nothing(three: Path, tmp_path: Path) -> None:
    when = 1
    while begin_during_a_sweep(three, tmp_path / str(when), when):
        when += 1
    assert when > 60


@pytest.mark.parametrize(("when", "unfinished"), [(9, True), (60, True), (75, False)])
def test_what_is_made_without_a_run_during_a_sweep_stays(
    three: Path, tmp_path: Path, when: int, unfinished: bool
) -> None:
    assert inspect_during_a_sweep(three, tmp_path / "lake", when, unfinished)


@pytest.mark.slow
@pytest.mark.parametrize("unfinished", [True, False])
def test_what_is_made_without_a_run_at_any_call_of_a_sweep_stays(three: Path, tmp_path: Path, unfinished: bool) -> None:
    when = 1
    while inspect_during_a_sweep(three, tmp_path / str(when), when, unfinished):
        when += 1
    assert when > 60


def test_work_without_a_run_keeps_what_it_holds_while_it_lives_and_no_longer(three: Path, tmp_path: Path) -> None:
    store = make_store(copy(three, tmp_path / "lake"))
    digests = set(load_tables(store, "p-00001").digests)
    with Visit(store, Pace(beat=3600)) as visit:
        visit.hold(digests)
        alive = Time(during=visit._save).pace()
        assert not look(store, Policy(keep_runs=1), alive).doomed & digests
        silent = look(store, Policy(keep_runs=1), fast())  # nothing was heard of it for our patience
        assert silent.doomed >= digests and store.list("visits")[0] in silent.records[-1].keys
    at_once = Time()
    found = look(store, Policy(keep_runs=1), at_once.pace())
    assert found.young.keys() >= digests and at_once.slept == 0
    sweep(store, Policy(keep_runs=1), fast())
    assert store.list("visits") == []
    run(store, 9)
    assert sweep(store, Policy(keep_runs=1), fast()).doomed >= digests  # for one has finished without them


def test_what_work_without_a_run_wants_stays_though_it_was_about_to_go(three: Path, tmp_path: Path) -> None:
    """Its time is over, or a sweep that was killed had it on its list."""
    store = make_store(uri := copy(three, tmp_path / "lake"))
    digests = set(inspect(store, 8))
    sweep(store, Policy(keep_runs=1), fast())
    run(store, 4)
    assert look(store, Policy(keep_runs=1), fast()).doomed >= digests
    with Visit(store, Pace(beat=3600)) as visit:
        visit.hold(digests)
        alive = Time(during=visit._save).pace()
        assert not look(store, Policy(keep_runs=1), alive).doomed & digests
    sweep(store, Policy(keep_runs=1), fast())
    run(store, 5)
    assert kill_a_sweep(uri, Policy(keep_runs=1), 0)  # with these on its list
    assert set(inspect(store, 8)) == digests
    assert not look(store, Policy(keep_runs=1), fast()).doomed & digests


def test_work_without_a_run_shows_that_it_lives_by_itself(store: Store) -> None:
    with Visit(store, Pace(beat=0.01)) as visit:
        visit.hold({"0" * 20})
        (key,) = store.list("visits")
        said = store.get(key)
        while store.get(key) == said:
            threading.Event().wait(0.01)
        assert load_visit(store, key) == ({"0" * 20}, False)
    assert load_visit(store, key) == ({"0" * 20}, True)


def test_a_stage_that_somebody_published_who_holds_nothing_is_left_alone(three: Path, tmp_path: Path) -> None:
    """As a version of ours does that is too old to hold anything."""
    uri = copy(three, tmp_path / "lake")
    first, second = load_tables(make_store(uri), "p-00001").digests
    pointer = make_store(uri).get(key := layout.published_key(first))
    make_store(uri).delete(key)

    class Late(PosixStore):
        def delete(self, key: str) -> None:
            if not self.exists(layout.published_key(first)):
                super().create(layout.published_key(first), pointer)
            super().delete(key)

    sweep(Late(uri), Policy(keep_runs=1), fast())
    store = make_store(uri)
    assert store.exists(key) and not store.exists(layout.published_key(second))
    assert damage(store) == [] and len(store.list(f"stages/{first}")) > 2


def sweep_during_a_run(three: Path, folder: Path, when: int) -> bool:
    """A whole sweep at one event of a run whose stages are doomed until it holds them."""
    uri = copy(three, folder)
    store, swept, events = make_store(uri), [], []
    expected = objects_of(store, "p-00001")

    def listen(event: Event) -> None:
        events.append(event)
        if len(events) == when:
            swept.append(sweep(make_store(uri), Policy(keep_runs=1), fast()))

    file = parse_spec(CHAIN.format(name="p", first=1, second=7, fails=""), "x.yaml")
    name = new_run(store, "p", file.text)
    executor = SerialExecutor(uri)
    report = PipelineRun(file.pipeline, name, store, executor, EventLog(listen), StopFlag(), pace=fast()).run()
    objects = objects_of(store, name)
    assert report.exit_code == 0 and damage(store) == []
    assert {
        key: sha for key, sha in expected.items() if key in objects
    }  # the stage that it shares with a run that went
    assert all(expected.get(key, sha) == sha for key, sha in objects.items()) and len(objects) == len(expected)
    return bool(swept)


@pytest.mark.parametrize("when", [1, 4])
def test_a_sweep_during_a_run_takes_nothing_from_it(three: Path, tmp_path: Path, when: int) -> None:
    assert sweep_during_a_run(three, tmp_path / "lake", when)


def sweep_at_a_call(three: Path, folder: Path, when: int) -> bool:
    """The same at one call of the driver to its store."""
    uri = copy(three, folder)
    expected = objects_of(make_store(uri), "p-00001")
    swept: list[object] = []
    store = Watched(uri, when, lambda: swept.append(sweep(make_store(uri), Policy(keep_runs=1), fast())))
    assert run(store, 1).exit_code == 0
    assert objects_of(make_store(uri), "p-00004") == expected and damage(make_store(uri)) == []
    return bool(swept)


@pytest.mark.slow
def test_a_sweep_at_any_moment_of_a_run_takes_nothing_from_it(three: Path, tmp_path: Path) -> None:
    for number, moment in enumerate((sweep_during_a_run, sweep_at_a_call)):
        when = 1
        while moment(three, tmp_path / f"{number}-{when}", when):
            when += 1
        assert when > 5


def test_a_run_goes_on_when_the_sweep_that_it_waits_for_is_dead(store: Store) -> None:
    dead, time = take(store, GC, fast()), Time()
    assert run(store, 1, pace=time.pace()).exit_code == 0
    assert 60 <= time.slept <= 65  # one patience, and not another one to take the lease
    waited = [event["message"] for event in read_events(store, "p-00001") if event["event"] == "waiting"]
    assert len(waited) == 1 and waited[0].startswith("gc is ")
    assert take(store, GC, fast()).term == dead.term + 2  # the run ended the sweep for all, so that nobody waits again


# ---------------------------------------------------------------- sweeps that are cut short


class Killed(BaseException):
    """The process is gone."""


class Mortal(PosixStore):
    """A folder whose process is killed before it removes a further object, or one whose key has these words."""

    def __init__(self, root: str, lives: int, before: str = "") -> None:
        super().__init__(root)
        self._lives, self._before, self._lock = lives, before, threading.Lock()

    def delete(self, key: str) -> None:
        with self._lock:
            self._lives = -1 if self._before and self._before in key else self._lives - 1
            if self._lives < 0:
                raise Killed
            super().delete(key)


def kill_a_sweep(uri: str, policy: Policy, lives: int, before: str = "") -> bool:
    """Whether it was killed after so many removals. Its lease stays, as that of a process that is no more."""
    try:
        sweep(Mortal(uri, lives, before), policy, fast())
    except Killed:
        for key in make_store(uri).list("leases"):
            if key.endswith(".end.json"):
                Path(uri, key).unlink()
        return True
    return False


def test_a_sweep_that_keeps_more_than_the_one_that_was_killed_has_no_half_run(three: Path, tmp_path: Path) -> None:
    uri = copy(three, tmp_path / "lake")
    assert kill_a_sweep(uri, Policy(keep_runs=1), 9)
    store = make_store(uri)
    found = sweep(store, Policy(keep_runs=3), fast())
    assert found.kept == ("p-00003",) and stages(store) == set(load_tables(store, "p-00003").digests)
    assert {name.split("/")[1] for name in store.list("runs")} == {"p-00003"} and damage(store) == []


@pytest.mark.parametrize("lives", [1, 6, 17])
def test_a_sweep_that_was_killed_leaves_nothing_half_and_the_next_one_ends_it(
    three: Path, tmp_path: Path, lives: int
) -> None:
    uri = copy(three, tmp_path / "lake")
    store = make_store(uri)
    expected = {name: objects_of(store, name) for name in ("p-00001", "p-00003")}
    assert kill_a_sweep(uri, Policy(keep_runs=1), lives)
    assert damage(store) == [] and objects_of(store, "p-00003") == expected["p-00003"]
    assert run(store, 1).exit_code == 0  # what is half gone is made again
    assert objects_of(store, "p-00004") == expected["p-00001"] and damage(store) == []
    sweep(store, Policy(keep_runs=1), fast())
    assert {name.split("/")[1] for name in store.list("runs")} == {"p-00004"}
    assert stages(store) == set(load_tables(store, "p-00004").digests) and damage(store) == []


@pytest.mark.slow
def test_sweeps_of_a_bucket_do_the_same(moto_bucket: str) -> None:
    store = make_store(f"s3://{moto_bucket}/lake")
    for seed in (1, 2, 3):
        run(store, seed)
    before = objects_of(store, "p-00003")
    assert sweep(store, Policy(keep_runs=1), fast()).dropped == ("p-00001", "p-00002")
    assert objects_of(store, "p-00003") == before and damage(store) == []
    assert stages(store) == set(load_tables(store, "p-00003").digests)
    assert {key.split("/")[1] for key in store.list("runs")} == {"p-00003"}


# ---------------------------------------------------------------- any order of all of it

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(0, 2), st.integers(0, 2), st.sampled_from(["p", "q"])),
        st.tuples(st.just("fail"), st.integers(0, 2), st.integers(3, 4), st.sampled_from(["p", "q"])),
        st.tuples(st.just("inspect"), st.integers(0, 2), st.integers(0, 2), st.integers(0, 60), st.booleans()),
        st.tuples(st.just("sweep"), st.integers(1, 3)),
        st.tuples(st.just("kill"), st.integers(1, 3), st.integers(0, 40)),
    ),
    min_size=3,
    max_size=10,
)


def kept_at_least(store: Store, keep: int) -> set[str]:
    """By another way than the sweep's: whatever has the tables of one of the newest finished runs of each pipeline, once."""
    keys = store.list("runs")
    finished = [key.split("/")[1] for key in keys if key.endswith("/tables.json")]
    finished = [name for name in finished if f"runs/{name}/spec.yaml" in keys]
    newest = sorted(finished, key=lambda name: int(name[2:]))
    last = [name for pipeline in "pq" for name in [n for n in newest if n[0] == pipeline][-keep:]]
    tables = {name: str(sorted(load_tables(store, name).stages.items())) for name in last}
    return {name for name in last if not any(n[0] == name[0] and n > name and tables[n] == tables[name] for n in last)}


def check_any_order(folder: Path, steps: list[tuple[Any, ...]]) -> None:
    uri = str(folder)
    store = make_store(uri)
    made: dict[str, dict[str, str]] = {}
    content: dict[tuple[Any, ...], dict[str, str]] = {}
    for what, *rest in steps:
        if what in ("run", "fail"):
            report = run(store, *rest, fails=what == "fail")
            objects = made[report.state.run] = objects_of(store, report.state.run)
            assert content.setdefault((what, *rest[:2]), objects) == objects
            continue
        if what == "inspect":
            first, second, when, during = rest
            made_again = partial(inspect, first=first, second=second)
            if during:
                during_a_sweep(uri, Policy(2), when, lambda s, pace, make=made_again: make(s, pace=pace))
            else:
                made_again(store)
            assert damage(store) == []
            continue
        kept = kept_at_least(store, rest[0])
        if what == "sweep":
            assert set(sweep(store, Policy(rest[0]), fast()).kept) >= kept
        else:
            kill_a_sweep(uri, Policy(rest[0]), rest[1])
        assert {name: objects_of(store, name) for name in kept} == {name: made[name] for name in kept}
        assert damage(store) == []


@settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_after_any_sweep_every_kept_run_reads_all_its_tables(
    steps: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_any_order(tmp_path_factory.mktemp("any"), steps)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_after_any_of_many_sweeps_every_kept_run_reads_all_its_tables(
    steps: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_any_order(tmp_path_factory.mktemp("any"), steps)


# ---------------------------------------------------------------- what the sweep rests on, in the code


def users(*names: str) -> set[str]:
    """Modules outside the stores in which one of these names stands before a bracket."""
    call = re.compile(rf"(?<!def )\b({'|'.join(names)})\(")
    found = (
        path for package in ("schemas", "miclip_core", "jobs", "cluster") for path in (ROOT / package).rglob("*.py")
    )
    return {
        str(path.relative_to(ROOT)) for path in found if "stores" not in path.parts and call.search(path.read_text())
    }


def test_only_the_sweep_removes_results() -> None:
    assert users(r"\.delete") == {"cluster/gc.py"}
    assert users(r"\.drop_state") == {"cluster/keep.py"}


def test_unpublished_artifacts_are_read_by_their_own_rounds_alone_but_for_indices() -> None:
    """`gc` removes them once the stage is published."""
    reads = [
        (path, first)
        for path in (ROOT / "jobs").rglob("*.py")
        for first in re.findall(r"inputs\.(?:artifact|shard_table)\(\s*([^,]+),", path.read_text())
    ]
    assert len(reads) > 5 and all(first.endswith("plan.digest") for _, first in reads), reads
    assert users("load_artifact", "load_done") == {
        "cluster/image_reader.py",
        "cluster/inputs.py",
        "cluster/ledger.py",
    }


# ---------------------------------------------------------------- what is left behind


@pytest.mark.parametrize("holds", [True, False])
def test_what_is_made_again_after_a_sweep_has_its_time(three: Path, tmp_path: Path, holds: bool) -> None:
    store = make_store(copy(three, tmp_path / "lake"))
    assert set(doomed := load_tables(store, "p-00001").digests) <= sweep(store, Policy(keep_runs=1), fast()).doomed
    assert tuple(inspect(store, 1, holds=holds)) == doomed
    assert sweep(store, Policy(keep_runs=2), fast()).young.keys() >= set(doomed)
    run(store, 5)
    assert sweep(store, Policy(keep_runs=2), fast()).doomed == set()
    run(store, 6)
    assert sweep(store, Policy(keep_runs=2), fast()).doomed >= set(doomed)


def test_a_second_sweep_finds_nothing_and_keeps_no_record_but_its_own(three: Path, tmp_path: Path) -> None:
    store = make_store(copy(three, tmp_path / "lake"))
    sweep(store, Policy(keep_runs=1), fast())
    assert look(store, Policy(keep_runs=1), fast()).trash == ()
    again = sweep(store, Policy(keep_runs=1), fast())
    assert again.trash == () and len(store.list("sweeps")) == 1
    assert {key.split("/")[2].split(".")[0] for key in store.list("leases/gc")} == {"00000002"}


def test_what_somebody_else_lays_beside_leases_ends_no_sweep_and_stays(store: Store) -> None:
    run(store, 1)
    foreign = [
        "leases/gc/00000099.copy.json",
        "leases/gc/notes.txt",
        "leases/gc/old/00000001.held.json",
        "leases/readme",
    ]
    for key in foreign:
        store.create(key, b"")
    for _ in range(2):
        sweep(store, Policy(), fast())
    terms = {key.split("/")[2].split(".")[0] for key in store.list("leases/gc") if key not in foreign}
    assert terms == {"00000002"} and set(foreign) <= set(store.list("leases"))


def test_what_checks_of_the_store_leave_goes_once_they_are_surely_over(store: Store) -> None:
    run(store, 1)
    for _ in range(3):
        check_writable(store)
    assert store.list("probe") == [WRITABLE]
    probe(store)
    left = set(store.list("probe")) - {WRITABLE}
    assert len(left) == 7
    assert sweep(store, Policy(), fast()).trash == () and left < set(store.list("probe"))
    assert set(sweep(store, Policy(), fast()).trash[0].keys) == left
    assert store.list("probe") == [WRITABLE]


def test_folders_of_what_went_go_too(three: Path, tmp_path: Path) -> None:
    uri = copy(three, tmp_path / "lake")
    sweep(make_store(uri), Policy(keep_runs=1), fast())
    assert sorted(path.name for path in Path(uri, "runs").iterdir()) == ["p-00003"]
    assert [path for path in Path(uri).rglob("*") if path.is_dir() and not any(path.iterdir())] == []


def test_a_pipeline_that_has_no_run_is_refused(store: Store) -> None:
    run(store, 1)
    with pytest.raises(UnknownRun, match=r"pipeline 'pp' has no run in .*; there are p"):
        look(store, Policy(pipeline="pp"), fast())
