"""What every executor promises, in the same sentences; and what only one with processes of its own can be asked."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.events import EventLog
from cluster.executor import Executor, SerialExecutor, StopFlag
from cluster.run import run_stages
from cluster.stores.base import make_store
from schemas.errors import Infeasible, Interrupted, Unreachable
from schemas.plans import Resources
from tests import driver
from tests.corridor import Todo, contents, markers, published_rows, run, selftest

MakeExecutor = Callable[[str], Executor]
ROWS = {"rows": 40, "shard_rows": 4, "variants": ("a", "b")}


@pytest.fixture(params=["serial", "ray"])
def make_executor(request: pytest.FixtureRequest) -> Iterator[MakeExecutor]:
    """Executors of each sort over a store; closed after the test."""
    if request.param == "ray":
        request.getfixturevalue("ray_address")
    made: list[Executor] = []

    def make(store: str) -> Executor:
        if request.param == "serial":
            made.append(SerialExecutor(store))
        else:
            from cluster.on_ray.executor import RayExecutor

            made.append(RayExecutor(store))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


@pytest.fixture
def make_ray(ray_address: str) -> Iterator[MakeExecutor]:
    """Ray executors only, where a process must be able to die."""
    from cluster.on_ray.executor import RayExecutor

    made: list[RayExecutor] = []

    def make(store: str) -> RayExecutor:
        made.append(RayExecutor(store))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


def undisturbed(folder: Path, todo: Todo) -> dict[str, bytes]:
    """What a quiet run in one process leaves in a store."""
    store = str(folder / "undisturbed")
    run(todo, store, SerialExecutor(store))
    return contents(store)


def count_markers(store: str) -> int:
    """Shards of every stage that are done."""
    return len(list(Path(store).rglob("*.done.json")))


def count_whole(store: str, todo: Todo) -> int:
    """Shards that are done for every stage."""
    return sum(n == len(todo) for n in Counter(number for _, number in markers(store, todo)).values())


def wait_for_markers(store: str, n: int, process: subprocess.Popen) -> None:
    """Until there are so many, or the driver has ended."""
    deadline = time.monotonic() + 240
    while count_markers(store) < n and process.poll() is None:
        assert time.monotonic() < deadline, "the driver makes no progress"
        time.sleep(0.01)


# -- both


def test_every_row_is_published_once_and_in_order(tmp_path: Path, make_executor: MakeExecutor) -> None:
    todo = selftest(**ROWS)
    ran = run(todo, str(tmp_path), make_executor(str(tmp_path)))
    assert ran.board.incomplete() == []
    assert published_rows(str(tmp_path), todo) == [list(range(40))] * 2
    assert len(ran.of("shard_done")) == 11  # ten row ranges that both variants share, and one merge for both


def test_the_store_equals_that_of_a_run_in_one_process(tmp_path: Path, make_executor: MakeExecutor) -> None:
    todo = selftest(**ROWS)
    run(todo, str(tmp_path / "s"), make_executor(str(tmp_path / "s")))
    assert contents(str(tmp_path / "s")) == undisturbed(tmp_path, todo)


def test_a_published_stage_is_not_run_again(tmp_path: Path, make_executor: MakeExecutor) -> None:
    todo = selftest(**ROWS)
    executor = make_executor(str(tmp_path))
    run(todo, str(tmp_path), executor)
    again = run(todo, str(tmp_path), executor)
    assert [e["event"] for e in again.events] == ["cached", "cached"]


def test_an_application_error_is_not_retried_and_its_traceback_is_kept(
    tmp_path: Path, make_executor: MakeExecutor
) -> None:
    todo = selftest(**ROWS, error_shards=(3,))
    ran = run(todo, str(tmp_path), make_executor(str(tmp_path)))
    (outcome,) = ran.board.failed.values()
    assert (outcome.task.shard.number, outcome.task.attempt, outcome.error) == (3, 0, "ValueError")
    assert 'raise ValueError(f"shard {shard.number} was told to fail")' in outcome.traceback
    assert {n for _, n in markers(str(tmp_path), todo)} == set(range(10)) - {3}
    assert len(list(tmp_path.rglob("00003.failed.json"))) == 2
    assert not list(tmp_path.rglob("published.json"))


def test_a_work_that_cannot_be_opened_stops_alone(tmp_path: Path, make_executor: MakeExecutor) -> None:
    good = selftest(**ROWS)
    ((plan, needs),) = selftest(subject="absent", rows=8, shard_rows=2)
    stage = plan.stage.model_copy(update={"kind": "not_installed"})
    ran = run([(plan.model_copy(update={"stage": stage}), needs), *good], str(tmp_path), make_executor(str(tmp_path)))
    assert published_rows(str(tmp_path), good) == [list(range(40))] * 2
    assert {o.state for o in ran.board.failed.values()} == {"open_failed"}
    assert [p.stage.kind for p in ran.board.incomplete()] == ["not_installed"]


def test_out_of_memory_halves_the_batch_and_the_rows_stay_the_same(tmp_path: Path, make_executor: MakeExecutor) -> None:
    todo = selftest(**ROWS, batch_rows=4)
    short = selftest(**ROWS, batch_rows=4, oom_above=1)
    run(short, str(tmp_path / "s"), make_executor(str(tmp_path / "s")))
    assert {k: v for k, v in contents(str(tmp_path / "s")).items() if k.startswith("tables/")} == {
        k: v for k, v in undisturbed(tmp_path, todo).items() if k.startswith("tables/")
    }


def test_a_stop_request_ends_the_run_and_the_next_one_goes_on(tmp_path: Path, make_executor: MakeExecutor) -> None:
    todo = selftest(**ROWS, sleep_ms=50)
    executor, stop = make_executor(str(tmp_path)), StopFlag()
    seen: list[str] = []

    def listen(event: dict[str, Any]) -> None:
        seen.append(event["event"])
        if seen.count("shard_done") == 3:
            stop.stop("SIGINT")

    with pytest.raises(Interrupted, match="SIGINT"):
        run_stages(todo, make_store(str(tmp_path)), executor, EventLog(listen), stop)
    before = seen.count("shard_done")
    assert 3 <= before <= 6
    stored = len({n for _, n in markers(str(tmp_path), todo)})
    again = run(todo, str(tmp_path), executor)
    assert before <= stored
    assert len(again.of("shard_done")) <= 11 - stored  # an actor that is being killed may write one marker more
    assert published_rows(str(tmp_path), todo) == [list(range(40))] * 2


def test_a_store_that_fails_ends_the_run_with_the_reason(tmp_path: Path, make_executor: MakeExecutor) -> None:
    todo = selftest(**ROWS)
    executor = make_executor("s3://nowhere/x")
    with pytest.raises(Unreachable, match="s3://nowhere/x"):
        run(todo, str(tmp_path), executor)


def test_gpus_that_are_not_there_are_refused_before_any_work(tmp_path: Path, make_executor: MakeExecutor) -> None:
    todo = selftest(Resources(gpus=1.0), **ROWS)
    with pytest.raises(Infeasible, match=r"resources\.gpus"):
        run(todo, str(tmp_path), make_executor(str(tmp_path)))
    assert not list(tmp_path.rglob("*.done.json"))


# -- a store in the state in which a killed driver leaves it


def test_killed_between_the_last_marker_and_publishing_a_rerun_publishes_and_computes_nothing(
    tmp_path: Path, make_executor: MakeExecutor
) -> None:
    todo = selftest(**ROWS)
    expected = undisturbed(tmp_path, todo)
    store = tmp_path / "undisturbed"
    for pointer in store.rglob("published.json"):
        pointer.unlink()
    ran = run(todo, str(store), make_executor(str(store)))
    assert ran.of("shard_done") == []
    assert contents(str(store)) == expected


def test_killed_between_part_and_marker_a_rerun_adopts_the_part_and_doubles_no_row(
    tmp_path: Path, make_executor: MakeExecutor
) -> None:
    todo = selftest(**ROWS)
    expected = undisturbed(tmp_path, todo)
    store = tmp_path / "undisturbed"
    for path in [*store.rglob("published.json"), *store.rglob("00003.done.json")]:
        path.unlink()
    (store / "tables" / "selftest" / ".tmp-of-a-killed-writer").write_bytes(b"half a part")
    ran = run(todo, str(store), make_executor(str(store)))
    assert [e["shard"] for e in ran.of("shard_done")] == [3]
    assert contents(str(store)) == expected


# -- processes that die


def test_one_two_and_three_workers_leave_identical_stores(tmp_path: Path, make_ray: MakeExecutor) -> None:
    expected = undisturbed(tmp_path, selftest(**ROWS))
    for workers in (1, 2, 3):
        store = str(tmp_path / f"{workers}")
        run(selftest(Resources(workers=workers), **ROWS), store, make_ray(store))
        assert contents(store) == expected


def test_a_poison_shard_is_set_aside_after_three_attempts_and_its_neighbours_are_not_blamed(
    tmp_path: Path, make_ray: MakeExecutor
) -> None:
    todo = selftest(Resources(workers=1), **ROWS, poison_shards=(1,))
    ran = run(todo, str(tmp_path), make_ray(str(tmp_path)))
    (outcome,) = ran.board.failed.values()
    assert (outcome.task.shard.number, outcome.task.attempt, outcome.state) == (1, 2, "lost")
    found = markers(str(tmp_path), todo)
    assert {n for _, n in found} == set(range(10)) - {1}
    assert {marker.attempt for marker in found.values()} == {0}
    assert [(e["shard"], e["attempt"]) for e in ran.of("shard_lost")] == [(1, 1), (1, 2), (1, 3)]


def test_an_actor_killed_in_the_middle_of_a_shard_changes_nothing_but_the_attempt(
    tmp_path: Path, make_ray: MakeExecutor
) -> None:
    signals = tmp_path / "signals"
    signals.mkdir()
    for n in (2, 7):
        (signals / f"crash-{n}").touch()
    expected = undisturbed(tmp_path, selftest(**ROWS))
    store = str(tmp_path / "s")
    todo = selftest(**ROWS, crash_once_dir=str(signals))
    ran = run(todo, store, make_ray(store))
    assert sorted((e["shard"], e["attempt"]) for e in ran.of("shard_lost")) == [(2, 1), (7, 1)]
    assert {n: m.attempt for (_, n), m in markers(store, todo).items() if m.attempt} == {2: 1, 7: 1}
    same = lambda c: {k: v for k, v in c.items() if not k.endswith("plan.json")}  # noqa: E731  plans name the switch
    assert same(contents(store)) == same(expected)


def test_two_drivers_at_once_make_one_table(tmp_path: Path, ray_address: str) -> None:
    fields = {**ROWS, "sleep_ms": 40}
    expected = undisturbed(tmp_path, selftest(**fields))
    store = str(tmp_path / "s")
    both = [driver.start(store, ray_address, fields, resources={"workers": 1}) for _ in range(2)]
    ends = [driver.finish(process) for process in both]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert contents(store) == expected
    assert len(list((tmp_path / "s").rglob("*.parquet"))) == 22


def test_a_driver_killed_at_random_moments_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    rng = random.Random(1)
    fields = {"rows": 120, "shard_rows": 4, "variants": ("a", "b"), "sleep_ms": 25}
    todo = selftest(**fields)
    expected = undisturbed(tmp_path, todo)
    store = str(tmp_path / "s")
    for _ in range(4):
        process = driver.start(store, "serial", fields)
        wait_for_markers(store, count_markers(store) + 1, process)
        time.sleep(rng.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    whole = count_whole(store, todo)
    code, counts, _ = driver.finish(driver.start(store, "serial", fields))
    assert code == 0
    assert whole > 0
    assert counts["done"] == 31 - whole
    assert contents(store) == expected


def test_a_driver_killed_with_its_actors_at_work_can_be_run_again_at_once(tmp_path: Path, ray_address: str) -> None:
    fields = {**ROWS, "sleep_ms": 120}
    todo = selftest(**fields)
    expected = undisturbed(tmp_path, todo)
    store = str(tmp_path / "s")
    process = driver.start(store, ray_address, fields)
    wait_for_markers(store, 4, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = count_whole(store, todo)
    code, counts, _ = driver.finish(driver.start(store, ray_address, fields))
    assert code == 0
    assert counts["done"] <= 11 - before
    assert contents(store) == expected
