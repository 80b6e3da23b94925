"""Drivers that die at the worst moments, on a folder and on a bucket: a rerun does what is left and nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.events import read_events
from cluster.ledger import done_shards
from cluster.runs import load_state
from cluster.shard_host import ShardHost
from cluster.stores.base import make_store
from cluster.works import Task, group_siblings
from jobs.selftest.work import SelftestWorker
from schemas.job_files import as_pipeline
from schemas.pipeline_spec import PipelineSpec
from schemas.selftest_specs import SelftestSpec
from tests.corridor import selftest
from tests.faults import victim
from tests.faults.conftest import Place
from tests.lakes import Lake

SPEC = as_pipeline(SelftestSpec(rows=50, shard_rows=10, variants=("a", "b")))
STOP_SECONDS = 2.0
"""From a signal to the state in the store, by the driver's own stopwatch; a machine that is taken back gives three."""
TASKS = 6
"""Five row ranges that both variants share, and one merge for both."""


def quiet(place: Place, spec: PipelineSpec = SPEC) -> dict[str, str]:
    """Files of a run that nothing happened to, in the same place."""
    lake = Lake(place.store("quiet"))
    assert lake.run(spec).exit_code == 0
    return lake.files()


def killed(store: str, key: str, nth: int, when: str) -> None:
    process = victim.start(store, SPEC, die={"key": key, "nth": nth, "when": when})
    code, said, err = victim.finish(process)
    assert (code, said) == (victim.DIED, {}), err


def test_killed_after_the_marker_of_its_fifth_shard_a_rerun_does_the_missing_ones(place: Place) -> None:
    """Markers come in pairs, one for each variant: nine leave one variant of the fifth shard, and the merge of each."""
    store = place.store("lake")
    killed(store, r"done\.json$", 9, "after")
    lake = Lake(store)
    assert lake.run(SPEC).exit_code == 0
    done = [(e["shard"], len(e["stages"])) for e in lake.events if e["event"] == "shard_done"]
    assert sorted(done) == [(4, 1), (5, 1), (5, 1)]
    assert lake.files() == quiet(place)


def test_killed_between_the_last_marker_and_publishing_a_rerun_publishes_and_computes_nothing(place: Place) -> None:
    store = place.store("lake")
    killed(store, r"published\.json$", 1, "before")
    assert not [key for key in make_store(store).list("stages") if key.endswith("published.json")]
    lake = Lake(store)
    assert lake.run(SPEC).exit_code == 0
    assert (lake.count("shard_done"), lake.count("published")) == (0, 2)
    assert lake.files() == quiet(place)


def test_killed_between_part_and_marker_a_rerun_adopts_the_part_and_doubles_no_row(place: Place) -> None:
    store = place.store("lake")
    killed(store, r"00002\.done\.json$", 1, "before")
    orphan = [key for key in make_store(store).list("tables") if "part-00002" in key]
    assert len(orphan) in (1, 2)  # of one variant or, stored side by side, of both; no marker counts it
    lake = Lake(store)
    assert lake.run(SPEC).exit_code == 0
    assert lake.count("shard_done") == TASKS - 2
    assert lake.files() == quiet(place)


@pytest.mark.parametrize("nth", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 9))])
def test_killed_among_stages_that_read_each_other_a_rerun_does_the_missing_shards(place: Place, nth: int) -> None:
    """Two chains side by side, of 3 stages with 2 shards and a merge, and of 1: 12 markers, of which `nth` are written."""
    cell = {"kind": "selftest", "rows": 20, "shard_rows": 10}
    chain = {"one": {}, "two": {"reads": "one"}, "three": {"reads": "two"}, "beside": {}}
    stages = {name: {**cell, "subject": name, **more} for name, more in chain.items()}
    spec = PipelineSpec.model_validate({"name": "chains", "stages": stages}, strict=False)
    store = place.store("lake")
    process = victim.start(store, spec, die={"key": r"done\.json$", "nth": nth, "when": "after"})
    assert victim.finish(process)[0] == victim.DIED
    lake = Lake(store)
    assert lake.run(spec).exit_code == 0
    assert lake.count("shard_done") == 12 - nth
    assert lake.files() == quiet(place, spec)


def test_an_error_in_the_middle_of_a_shard_leaves_none_of_it_in_the_store(place: Place) -> None:
    """Rows 20 to 24 are given by the worker before row 27 stops it; not one of them may be seen."""
    lake = Lake(place.store("lake"))
    bad = as_pipeline(SelftestSpec(rows=50, shard_rows=10, batch_rows=5, nan_rows=(27,)))
    report = lake.run(bad)
    assert report.exit_code == 1 and "row 27 is NaN" in report.failures[0]
    keys = lake.store.list("")
    assert sorted(re.findall(r"part-(\d+)", " ".join(keys))) == ["00000", "00001", "00003", "00004"]
    assert not [key for key in keys if key.endswith(("00002.done.json", "published.json"))]


def test_two_workers_with_the_same_shard_at_the_same_moment_leave_one_part_and_one_marker(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wait for each other after they saw that nobody has done the shard, so both go on to write it."""
    together = threading.Barrier(2, timeout=240)
    rows = SelftestWorker._rows

    def meet_first(self: SelftestWorker, *arguments: Any) -> Any:
        together.wait()
        return rows(self, *arguments)

    monkeypatch.setattr(SelftestWorker, "_rows", meet_first)
    (work,) = group_siblings(selftest(rows=10, shard_rows=10))
    (plan,) = work.plans
    task = Task(work.key, next(iter(plan.shards(0))), (plan.digest,))
    store = place.store("lake")
    outcomes: list[Any] = []
    threads = [threading.Thread(target=lambda: outcomes.append(ShardHost(store).run(work, task))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(o.state, o.rows, o.notes) for o in outcomes] == [("done", 10, ())] * 2
    opened = make_store(store)
    assert len(opened.list("tables")) == 1 and done_shards(opened, plan.digest) == {0}
    monkeypatch.undo()


def test_two_drivers_at_once_make_one_table_and_both_succeed(place: Place) -> None:
    spec = as_pipeline(SelftestSpec(rows=80, shard_rows=10, variants=("a", "b"), sleep_ms=60))
    expected = quiet(place, as_pipeline(SelftestSpec(rows=80, shard_rows=10, variants=("a", "b"))))
    store = place.store("lake")
    both = [victim.start(store, spec) for _ in range(2)]
    for process in both:
        victim.finish_well(process)
    assert Lake(store).files() == expected
    assert victim.finish_well(victim.start(store, spec))["cached"] == 2  # a third finds nothing to do


# -- a signal to the command


def write_spec(folder: Path, **fields: Any) -> Path:
    path = folder / "slow.yaml"
    path.write_text(json.dumps({"kind": "selftest", "name": "slow", **fields}), encoding="utf-8")
    return path


def start_command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`miclip ...` in a process group of its own."""
    env = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=victim.ROOT, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def wait_for(store: str, suffix: str, n: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    opened = make_store(store)
    while len([key for key in opened.list("stages") if key.endswith(suffix)]) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the command makes no progress"
        time.sleep(0.05)


def terminate(store: str, run: str, process: subprocess.Popen[str]) -> str:
    """SIGTERM; what the command said on stderr when it had ended, by 143 and in time."""
    opened = make_store(store)
    assert load_state(opened, run).status == "RUNNING"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 143, (out, err)
    state = load_state(opened, run)
    assert (state.status, state.exit_code) == ("INTERRUPTED", 143)
    (stopped,) = [event for event in read_events(opened, run) if event["event"] == "stopped"]
    assert stopped["saved_after"] < STOP_SECONDS
    return err


def test_sigterm_writes_the_state_in_time_and_the_same_command_goes_on(place: Place, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, rows=200, shard_rows=10, sleep_ms=600)
    store = place.store("lake")
    order = ("run", str(spec), "--store", store, "--executor", "serial")
    process = start_command(tmp_path, *order)
    wait_for(store, "done.json", 3, process)
    assert "finished shards are kept" in terminate(store, "slow-00001", process)
    done = len([key for key in make_store(store).list("stages") if key.endswith("done.json")])
    assert 3 <= done < 21
    again = start_command(tmp_path, *order, "--set", "sleep_ms=0", "--json")
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    lake = Lake(store)
    assert load_state(lake.store, "slow-00002").status == "DONE"
    assert lake.files() == quiet(place, as_pipeline(SelftestSpec(rows=200, shard_rows=10)))


@pytest.mark.slow
def test_sigterm_does_not_wait_for_a_long_shard_on_ray(tmp_path: Path) -> None:
    """Every shard takes 5 minutes; the workers are ended, the state is there in time."""
    store = str(tmp_path / "lake")
    spec = write_spec(tmp_path, rows=4, shard_rows=1, sleep_ms=300_000)
    process = start_command(tmp_path, "run", str(spec), "--store", store, "--cpus", "2")
    begun = time.monotonic()
    while not working(process.pid):
        assert process.poll() is None and time.monotonic() - begun < 240, process.communicate()
        time.sleep(0.05)
    terminate(store, "slow-00001", process)


def working(driver: int) -> bool:
    """Whether a worker below a driver runs a shard now; Ray names a process after the method that it runs."""
    below = psutil.Process(driver).children(recursive=True)
    with suppress(psutil.NoSuchProcess):  # one of them ended while we looked
        return any("HostActor.run" in " ".join(process.cmdline()) for process in below)
    return False
