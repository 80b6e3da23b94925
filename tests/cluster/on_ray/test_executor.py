"""The pool of actors: what is refused, what is waited for, who restarts with whom, and what is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from cluster.executor import SerialExecutor, StopFlag
from cluster.on_ray.actor import HostActor, limit_threads
from cluster.on_ray.executor import RayExecutor
from cluster.on_ray.team import describe, is_out_of_memory
from cluster.works import Outcome, Task, Work, group_siblings
from jobs.selftest.work import SelftestWorker
from schemas.errors import ClusterUnreachable, Infeasible, Interrupted
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Resources, Shard
from tests import driver
from tests.corridor import contents, markers, published_rows, run, selftest
from tests.lakes import Lake

pytestmark = pytest.mark.usefixtures("ray_address")
MakeRay = Callable[..., RayExecutor]


@pytest.fixture
def make_ray() -> Iterator[MakeRay]:
    made: list[RayExecutor] = []

    def make(store: str | Path, **options: float) -> RayExecutor:
        made.append(RayExecutor(str(store), **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for executor in made:
        executor.close()


# -- preflight


@pytest.mark.parametrize(
    ("resources", "gang", "message"),
    [
        (Resources(gpus=1.0), 1, r"resources\.gpus 1 asked for each worker, the largest machine of the cluster has 0"),
        (
            Resources(cpus=64.0),
            1,
            r"resources\.cpus 64 asked .* has 4 \(all together 4\); lower stages\.\*\.resources\.cpus",
        ),
        (Resources(memory_gb=1e6), 1, r"resources\.memory_gb 1e\+06 asked"),
        (Resources(cpus=1.0), 5, r"a gang of 5 .* needs 5, the cluster has 4; lower gang, or data_parallel"),
        (Resources(gpus=1.5), 1, r"resources\.gpus is 1\.5; above one GPU only whole numbers"),
    ],
)
def test_what_no_machine_can_hold_is_refused_with_field_and_both_numbers(
    tmp_path: Path, make_ray: MakeRay, resources: Resources, gang: int, message: str
) -> None:
    works = group_siblings(selftest(resources, rows=4, gang=gang))
    with pytest.raises(Infeasible, match=message):
        make_ray(tmp_path).check(works)


def test_what_fits_exactly_is_accepted(tmp_path: Path, make_ray: MakeRay) -> None:
    make_ray(tmp_path).check(group_siblings(selftest(Resources(cpus=4.0), rows=4)))
    make_ray(tmp_path).check(group_siblings(selftest(Resources(cpus=1.0), rows=4, gang=4)))


# -- waiting and stopping


def test_a_stop_is_seen_while_every_worker_is_busy(tmp_path: Path, make_ray: MakeRay) -> None:
    todo = selftest(Resources(workers=1), rows=4, shard_rows=1, sleep_ms=300_000)
    stop = StopFlag()
    executor = make_ray(tmp_path)
    run(selftest(Resources(workers=1), rows=1), str(tmp_path), executor)  # so that its worker is up
    threading.Timer(1.0, stop.stop, ["SIGTERM"]).start()
    started = time.monotonic()
    with pytest.raises(Interrupted, match="SIGTERM"):
        run(todo, str(tmp_path), executor, stop)
    assert time.monotonic() - started < 60  # 1 s to the request, a tick of 0.2 s, and a slow machine; not the shard


def test_room_that_others_hold_is_waited_for_and_then_given_up_with_a_sentence(
    tmp_path: Path, make_ray: MakeRay
) -> None:
    others = ray.remote(HostActor).options(num_cpus=4).remote(str(tmp_path), 1)
    ray.get(others.hello.remote())
    try:
        with pytest.raises(
            ClusterUnreachable, match=r"no worker started within 2 s: waiting for 1 CPUs, 0 GPUs; .*Others may"
        ):
            run(selftest(rows=4), str(tmp_path), make_ray(tmp_path, start_timeout=2.0))
    finally:
        ray.kill(others)


def test_a_worker_that_can_never_start_ends_the_run_with_its_reason(tmp_path: Path, make_ray: MakeRay) -> None:
    with pytest.raises(
        ClusterUnreachable, match=r"workers could not start 3 times in a row: .*scheme 'nope' is unknown"
    ):
        run(selftest(rows=4), str(tmp_path), make_ray("nope://x"))


def test_a_cluster_that_is_not_there_is_exit_code_three_within_seconds(tmp_path: Path) -> None:
    started = time.monotonic()
    code, _, err = driver.finish(driver.start(str(tmp_path), "127.0.0.1:9", {"rows": 4}))
    assert code == 3
    assert "ClusterUnreachable: no Ray cluster answers at '127.0.0.1:9'" in err
    assert time.monotonic() - started < 120  # Ray by itself would try for longer


# -- workers


def test_workers_are_kept_between_runs_and_end_with_the_executor(tmp_path: Path, make_ray: MakeRay) -> None:
    executor = make_ray(tmp_path)
    run(selftest(Resources(workers=1), rows=4), str(tmp_path), executor)
    (team,) = executor._teams.values()
    run(selftest(Resources(workers=1), rows=4, seed=1), str(tmp_path), executor)
    assert list(executor._teams.values()) == [team]
    (actor,) = team._actors
    executor.close()
    with pytest.raises(ray.exceptions.RayActorError):
        for _ in range(200):  # a killed actor may answer once more
            ray.get(actor.hello.remote(), timeout=240)
            time.sleep(0.1)
    assert ray.is_initialized()  # the session is not this executor's


def test_idle_workers_that_died_between_runs_are_not_blamed_on_the_next_shards(
    tmp_path: Path, make_ray: MakeRay
) -> None:
    executor = make_ray(tmp_path)
    run(selftest(rows=8, shard_rows=1, sleep_ms=50), str(tmp_path), executor)
    for team in executor._teams.values():
        ray.kill(team._actors[0], no_restart=True)
    ran = run(selftest(rows=8, shard_rows=1, seed=1), str(tmp_path), executor)
    assert ran.of("shard_lost") == []
    assert ran.board.incomplete() == []


@pytest.mark.parametrize("name", ["AcceleratorError", "RuntimeError"])
def test_a_worker_whose_device_failed_is_replaced_because_nothing_would_succeed_in_it(
    tmp_path: Path, make_ray: MakeRay, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """From shard 2 on every shard of the first process fails, as it does once a CUDA context is gone."""
    intact = tmp_path / "intact"
    intact.touch()

    class OnADevice(HostActor):
        def run(self, work: Work, task: Task) -> Outcome:
            self._gone = getattr(self, "_gone", False)
            SelftestWorker._misbehave = self._compute  # type: ignore[method-assign]
            return HostActor.run(self, work, task)

        def _compute(self, shard: Shard, switches: object) -> None:
            if shard.number == 2 and intact.exists():
                intact.unlink()
                self._gone = True
            if self._gone:
                raise type(name, (RuntimeError,), {})("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("cluster.on_ray.team._actor_class", lambda: ray.remote(OnADevice))
    todo = selftest(Resources(workers=1), rows=8, shard_rows=1)
    executor = make_ray(tmp_path / "s")
    ran = run(todo, str(tmp_path / "s"), executor)
    assert ran.board.failed == {} and published_rows(str(tmp_path / "s"), todo) == [list(range(8))]
    assert [(e["shard"], e["attempt"], e["error"]) for e in ran.of("shard_lost")] == [(2, 1, name)]
    assert [t.id for t in executor._teams.values()] == [1]


def test_two_actors_with_the_same_shard_at_once_leave_one_part_and_one_marker(tmp_path: Path) -> None:
    todo = selftest(rows=4, sleep_ms=300)
    (work,) = group_siblings(todo)
    (plan,) = work.plans
    task = Task(work.key, next(plan.shards(0)), (plan.digest,))
    actors = [ray.remote(HostActor).options(num_cpus=1).remote(str(tmp_path), 1) for _ in range(2)]
    ray.get([actor.hello.remote() for actor in actors])
    outcomes: list[Outcome] = ray.get([actor.run.remote(work, task) for actor in actors])
    for actor in actors:
        ray.kill(actor)
    assert [o.state for o in outcomes] == ["done", "done"]
    assert len(list(tmp_path.rglob("*.parquet"))) == len(list(tmp_path.rglob("*.done.json"))) == 1
    run(todo, str(tmp_path), SerialExecutor(str(tmp_path)))
    assert published_rows(str(tmp_path), todo) == [[0, 1, 2, 3]]


def test_a_full_object_store_changes_nothing(tmp_path: Path, make_ray: MakeRay) -> None:
    held = [ray.put(bytes(30 << 20)) for _ in range(5)]  # 150 MB into 80 MB: it spills
    todo = selftest(rows=12, shard_rows=2)
    run(todo, str(tmp_path / "s"), make_ray(tmp_path / "s"))
    run(todo, str(tmp_path / "quiet"), SerialExecutor(str(tmp_path / "quiet")))
    assert contents(str(tmp_path / "s")) == contents(str(tmp_path / "quiet"))
    assert len(ray.get(held[0])) == 30 << 20


# -- gangs


def test_a_gang_meets_and_publishes_once(tmp_path: Path, make_ray: MakeRay) -> None:
    todo = selftest(Resources(workers=3), rows=12, shard_rows=4, gang=3)
    ran = run(todo, str(tmp_path), make_ray(tmp_path))
    assert published_rows(str(tmp_path), todo) == [list(range(12))]
    assert len(ran.of("shard_done")) == 4


def test_a_gang_that_loses_a_member_restarts_together(tmp_path: Path, make_ray: MakeRay) -> None:
    signals = tmp_path / "signals"
    signals.mkdir()
    (signals / "crash-1").touch()
    todo = selftest(Resources(workers=2), rows=12, shard_rows=4, gang=2, crash_once_dir=str(signals))
    executor = make_ray(tmp_path / "s")
    ran = run(todo, str(tmp_path / "s"), executor)
    # the death of the one or the broken link of the other, whichever is heard of first
    assert [(e["shard"], e["attempt"]) for e in ran.of("shard_lost") + ran.of("shard_failed")] == [(1, 1)]
    assert {n: m.attempt for (_, n), m in markers(str(tmp_path / "s"), todo).items()} == {0: 0, 1: 1, 2: 0, 3: 0}
    assert published_rows(str(tmp_path / "s"), todo) == [list(range(12))]
    (team,) = executor._teams.values()
    assert team.id == 1  # the second gang; nobody of the first is left


def test_an_error_of_a_gang_is_recorded_once_and_the_others_do_not_wait_for_ever(
    tmp_path: Path, make_ray: MakeRay
) -> None:
    todo = selftest(Resources(workers=2), rows=12, shard_rows=4, gang=2, error_shards=(1,))
    ran = run(todo, str(tmp_path), make_ray(tmp_path))
    assert [(o.task.shard.number, o.error) for o in ran.board.failed.values()] == [(1, "ValueError")]
    assert {n for _, n in markers(str(tmp_path), todo)} == {0, 2}


# -- small things


def test_threads_follow_the_cpus_unless_the_node_states_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    for stated, cpus, threads in (("", 4, 4), ("2", 4, 2), ("9", 4, 4), ("many", 3, 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        assert limit_threads(cpus) == threads


def test_only_rays_memory_monitor_is_called_out_of_memory() -> None:
    killed = ray.exceptions.OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. More words"
    )
    assert is_out_of_memory(killed)
    assert "probably out of memory" in describe(killed)
    usual = ray.exceptions.RayActorError(error_msg="\tpid: 1\nThe process was killed, perhaps by the OOM killer")
    assert not is_out_of_memory(usual)
    assert describe(usual) == "the worker's process ended: The process was killed, perhaps by the OOM killer"


# -- stages that read each other


def test_siblings_that_are_freed_apart_while_others_run_are_done_as_in_one_process(
    tmp_path: Path, make_ray: MakeRay
) -> None:
    """`second` waits for a slow stage and for a quick one: the work that both were planned as becomes two."""
    cell = {"kind": "selftest", "rows": 20, "shard_rows": 10}
    stages = {
        "quick": {**cell, "subject": "quick"},
        "slow": {**cell, "subject": "slow", "sleep_ms": 300},
        "of-quick": {**cell, "subject": "second", "reads": "quick"},
        "of-slow": {**cell, "subject": "second", "reads": "slow", "variants": ["b"]},
        "last": {**cell, "subject": "last", "reads": ["of-quick", "of-slow"]},
    }
    spec = PipelineSpec.model_validate({"name": "chains", "stages": stages}, strict=False)
    alone, store = Lake(tmp_path / "alone"), tmp_path / "side-by-side"
    assert alone.run(spec).exit_code == 0
    lake = Lake(store, make_ray(store))
    assert lake.run(spec).exit_code == 0
    assert lake.files() == alone.files()
