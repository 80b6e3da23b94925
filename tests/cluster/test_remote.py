"""What is submitted and what is refused before; and ending a run from elsewhere, through its store alone."""

from __future__ import annotations

import itertools
import json
import shlex
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from cluster.events import EventLog
from cluster.executor import SerialExecutor, StopFlag
from cluster.lease import Pace
from cluster.on_ray.jobs import ClusterJobs, Job
from cluster.pipeline import PipelineRun
from cluster.remote import cancel, check_feasible, get_prefix, make_command
from cluster.runs import (
    RunOptions,
    RunState,
    ask_to_cancel,
    is_cancelled,
    load_state,
    new_run,
    save_options,
    save_state,
)
from cluster.scheduler import Node
from cluster.stores.base import Store, make_store
from cluster.watching import CancelWatch
from schemas.errors import BadSpec, Cancelled, Infeasible
from schemas.job_files import as_pipeline
from schemas.layout import alive_key
from schemas.plans import Resources
from schemas.selftest_specs import SelftestSpec
from tests.lossy import LossyStore
from tests.paces import Time

BEATS = itertools.count()
SMALL = (Node(2.0, (), 8.0), Node(4.0, (1.0,), 16.0))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path))


def test_a_submission_is_named_by_what_is_asked_for_and_where_its_results_go() -> None:
    spec = as_pipeline(SelftestSpec(rows=10))
    name = get_prefix(spec, "/lake")
    assert name == get_prefix(as_pipeline(SelftestSpec(rows=10)), "/lake")
    assert name.startswith("selftest-") and len(name) == len("selftest-") + 8
    assert len({name, get_prefix(as_pipeline(SelftestSpec(rows=11)), "/lake"), get_prefix(spec, "/other")}) == 3


def test_the_command_of_a_driver_survives_the_shell_and_says_whose_it_is() -> None:
    options = RunOptions(workers=3, python="/opt/my python/bin/python", ship=True)
    words = shlex.split(make_command("/lake of $HOME", options, "zoo-0123abcd-a2", "http://head:8265"))
    assert words == [
        *("exec", "/opt/my python/bin/python", "-m", "cluster.cli", "run", "spec.yaml"),
        *("--store", "/lake of $HOME", "--address", "auto", "--submission", "zoo-0123abcd-a2"),
        *("--jobs-url", "http://head:8265", "--workers", "3", "--python", "/opt/my python/bin/python", "--ship"),
    ]


@pytest.mark.parametrize(
    ("store_uri", "url"),
    [("s3://AKIAABCDEFGHIJKLMNOP/lake", "http://head:8265"), ("/lake", "http://me:hunter2@head:8265")],
)
def test_a_command_with_a_credential_is_refused_and_not_repeated(store_uri: str, url: str) -> None:
    with pytest.raises(BadSpec, match="credential") as caught:
        make_command(store_uri, RunOptions(), "zoo-0123abcd-a1", url)
    assert "AKIA" not in str(caught.value) and "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"gpus": 2}, r"stages\.selftest\.resources: selftest: resources\.gpus 2 asked .* has 1 \(all together 1\)"),
        ({"cpus": 8}, r"resources\.cpus 8 asked for each worker, the largest machine of the cluster has 4"),
        ({"cpus": 4, "memory_gb": 20}, r"resources\.memory_gb 20 asked .* has 16"),
    ],
)
def test_what_no_machine_of_the_cluster_has_is_refused(resources: dict[str, float], message: str) -> None:
    with pytest.raises(Infeasible, match=message):
        check_feasible(as_pipeline(SelftestSpec(resources=Resources(**resources))), SMALL)


def test_what_fits_one_machine_is_not_refused() -> None:
    check_feasible(as_pipeline(SelftestSpec(resources=Resources(gpus=1, cpus=4, workers=64))), SMALL)


# ---------------------------------------------------------------- cancel


def test_a_run_is_ended_through_its_store_and_what_it_finished_is_kept(store: Store) -> None:
    spec = as_pipeline(SelftestSpec(rows=400, shard_rows=1, sleep_ms=20))
    run, stop, working = new_run(store, spec.name, ""), StopFlag(), threading.Event()
    log = EventLog(lambda event: working.set() if event["event"] == "shard_done" else None)
    driver = PipelineRun(spec, run, store, SerialExecutor(store.uri), log, stop)
    ended: list[BaseException] = []

    def drive() -> None:
        try:
            with CancelWatch(store, run, stop, pause=0.02):
                driver.run()
        except Cancelled as error:
            ended.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    assert working.wait(60)
    assert cancel(make_store(store.uri), run, 60.0, pace=Pace(beat=0.02)) == "CANCELLED"
    thread.join(60)
    assert len(ended) == 1
    state = load_state(store, run)
    assert (state.status, state.exit_code) == ("CANCELLED", 130)
    assert 0 < state.stages[0].shards_done < 400
    assert cancel(store, run, 0.0) == "CANCELLED"


def put_state(store: Store, status: str, **options: str) -> str:
    run = new_run(store, "zoo", "")
    save_options(store, run, RunOptions(**options))
    save_state(store, RunState.model_validate({"run": run, "pipeline": "zoo", "number": 1, "status": status}))
    return run


@pytest.mark.parametrize("status", ["DONE", "FAILED", "INTERRUPTED", "STOPPED"])
def test_a_run_that_has_ended_stays_as_it_ended(store: Store, status: str) -> None:
    run = put_state(store, status)
    assert cancel(store, run, 0.0) == load_state(store, run).status == status


CLOCKS = pytest.mark.parametrize("clock", [0.0, 4e9])
"""Of the driver: far behind ours, and far ahead."""


def live(store: Store, run: str, clock: float) -> None:
    store.replace(alive_key(run), json.dumps({"time": clock, "beat": next(BEATS)}).encode())


@CLOCKS
def test_a_run_whose_driver_is_gone_is_cancelled_for_it_after_so_long_a_silence(store: Store, clock: float) -> None:
    run, time = put_state(store, "RUNNING"), Time()
    live(store, run, clock)
    assert cancel(store, run, 0.0, pace=time.pace()) == "CANCELLED"
    assert load_state(store, run).status == "CANCELLED" and time.now == time.pace().patience


@CLOCKS
def test_a_driver_that_lives_and_does_not_answer_is_said_to_run_still(store: Store, clock: float) -> None:
    run = put_state(store, "RUNNING")
    time = Time(during=lambda: live(store, run, clock) if time.now % 20 == 0 else None)
    assert cancel(store, run, 30.0, pace=time.pace()) == "RUNNING"
    assert load_state(store, run).status == "RUNNING" and time.now == 30
    assert is_cancelled(store, run)  # it ends when it looks


@dataclass
class Cluster:
    """A cluster that ends a driver `takes` seconds after it was told to."""

    time: Time
    status: str = "RUNNING"
    takes: float = 10.0
    knows: str = "zoo-0123abcd-a1"
    stopped: list[float] = field(default_factory=list)

    def get(self, job_id: str) -> Job | None:
        if self.stopped and self.time.now >= self.stopped[0] + self.takes:
            self.status = "STOPPED"
        return Job(job_id, self.status, "") if job_id == self.knows else None

    def stop(self, job_id: str) -> None:
        assert job_id == self.knows, "a cluster refuses to stop what it does not know"
        self.stopped.append(self.time.now)


def cancel_on(store: Store, run: str, seconds: float, cluster: Cluster) -> str:
    return cancel(store, run, seconds, cast(ClusterJobs, cluster), cluster.time.pace())


def test_a_driver_that_its_cluster_saw_end_is_waited_for_no_longer(store: Store) -> None:
    run, cluster = put_state(store, "RUNNING", submission="zoo-0123abcd-a1"), Cluster(Time(), status="FAILED")
    assert cancel_on(store, run, 30.0, cluster) == "CANCELLED"
    assert (cluster.time.now, cluster.stopped) == (0, [])


def test_a_silent_driver_is_stopped_by_its_cluster_and_is_cancelled_only_when_it_has_ended(store: Store) -> None:
    """However long it was silent: a machine may be slow, and whoever lives would go on writing."""
    run, cluster = put_state(store, "RUNNING", submission="zoo-0123abcd-a1"), Cluster(Time(), takes=45.0)
    assert cancel_on(store, run, 30.0, cluster) == "CANCELLED"
    assert (cluster.time.now, cluster.stopped) == (75, [30])
    deaf = put_state(store, "RUNNING", submission="zoo-0123abcd-a1")
    cluster = Cluster(Time(), takes=1e9)
    assert cancel_on(store, deaf, 30.0, cluster) == "RUNNING"
    assert load_state(store, deaf).status == "RUNNING" and cluster.time.now == 90


def test_who_asks_twice_has_the_cluster_end_it_at_once(store: Store) -> None:
    run, cluster = put_state(store, "RUNNING", submission="zoo-0123abcd-a1"), Cluster(Time())
    assert ask_to_cancel(store, run)
    assert cancel_on(store, run, 30.0, cluster) == "CANCELLED"
    assert (cluster.time.now, cluster.stopped) == (10, [0])


def test_who_asks_once_and_loses_the_answer_has_not_asked_twice(store: Store) -> None:
    run, cluster = put_state(store, "RUNNING", submission="zoo-0123abcd-a1"), Cluster(Time())
    assert cancel_on(LossyStore(store.uri, 1), run, 30.0, cluster) == "CANCELLED"
    assert cluster.stopped == [30]


def test_of_a_driver_that_the_cluster_does_not_know_its_silence_tells(store: Store) -> None:
    run, cluster = put_state(store, "RUNNING", submission="zoo-0123abcd-a7"), Cluster(Time())
    assert cancel_on(store, run, 30.0, cluster) == "CANCELLED"
    assert (cluster.time.now, cluster.stopped) == (60, [])
