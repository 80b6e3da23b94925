"""What is submitted and what is refused before; and ending a run from elsewhere, through its store alone."""

from __future__ import annotations

import json
import shlex
import threading
from pathlib import Path

import pytest

from cluster.events import EventLog
from cluster.executor import SerialExecutor, StopFlag
from cluster.pipeline import PipelineRun
from cluster.remote import cancel, check_feasible, get_prefix, make_command
from cluster.runs import RunOptions, RunState, load_state, new_run, save_options, save_state
from cluster.scheduler import Node
from cluster.stores.base import Store, make_store
from cluster.watching import CancelWatch
from schemas.errors import BadSpec, Cancelled, Infeasible
from schemas.job_files import as_pipeline
from schemas.layout import alive_key
from schemas.plans import Resources
from schemas.selftest_specs import SelftestSpec

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
    store.replace(alive_key(run), json.dumps({"time": 4e9}).encode())
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
    assert cancel(make_store(store.uri), run, 60.0, pause=0.02) == "CANCELLED"
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


def test_a_run_whose_driver_is_gone_is_cancelled_for_it(store: Store) -> None:
    run = put_state(store, "RUNNING")  # no sign of life
    assert cancel(store, run, 0.0) == "CANCELLED"
    assert load_state(store, run).status == "CANCELLED"


def test_a_driver_that_does_not_answer_is_said_to_run_still(store: Store) -> None:
    run = put_state(store, "RUNNING")
    store.replace(alive_key(run), json.dumps({"time": 4e9}).encode())
    assert cancel(store, run, 0.0) == "RUNNING"
    assert load_state(store, run).status == "RUNNING"
