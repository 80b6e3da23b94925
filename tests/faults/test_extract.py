"""Extraction killed, doubled and starved: the tables afterwards are those of an undisturbed run, file for file."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.stores.base import make_store
from tests.faultproxy import Rule
from tests.lakes import Lake, export, make_extract

MODEL = "demo:clip-rn"
CHANGES = {
    "sites": ["stage.2@map", "stage.4@map"],
    "outputs": ["activations", "activation_moments", "top_images", "embeddings"],
    "batch_size": 4,
    "shard_rows": 8,
}
DRIVER = """
import sys
from tests.faults.test_extract import CHANGES, MODEL
from tests.lakes import Lake, make_extract
folder, store, place = sys.argv[1:4]
executor = None
if place == "ray":
    from cluster.on_ray.executor import RayExecutor
    executor = RayExecutor(store, cpus=2)
lake = Lake(store, executor)
report = lake.run(make_extract(folder, (MODEL,), **CHANGES))
print(lake.count("shard_done", None), report.exit_code)
sys.exit(report.exit_code)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("world"), 96)


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a run that nothing happened to."""
    lake = Lake(tmp_path_factory.mktemp("undisturbed"))
    assert lake.run(make_extract(world, (MODEL,), **CHANGES)).exit_code == 0
    return lake.files()


def start(world: Path, store: str | Path, place: str = "serial", **environment: str) -> subprocess.Popen[str]:
    """A driver of its own process group, so that killing it kills nothing of the test's."""
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root, **environment}
    command = [sys.executable, "-c", DRIVER, str(world), str(store), place]
    return subprocess.Popen(command, env=env, cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True)


def done_markers(store: str | Path) -> set[str]:
    return {key for key in make_store(str(store)).list("stages") if key.endswith(".done.json")}


def wait_for_markers(store: str | Path, n: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while len(done_markers(store)) < n and process.poll() is None:
        assert time.monotonic() < deadline, "the driver makes no progress"
        time.sleep(0.02)


def finish(process: subprocess.Popen[str]) -> int:
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    return int(out.split()[-2])


def test_a_driver_killed_at_random_moments_leaves_only_unfinished_shards(world, undisturbed, tmp_path):
    """Killed twice by SIGKILL; 5 markers per image shard (two of them maps), so every kill lands in the middle."""
    rng = random.Random(7)
    for n in (4, 30):
        process = start(world, tmp_path)
        wait_for_markers(tmp_path, n + rng.randrange(8), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = done_markers(tmp_path)
    stamps = {key: os.stat(tmp_path / key).st_mtime_ns for key in before}
    assert finish(start(world, tmp_path)) > 0
    assert Lake(tmp_path).files() == undisturbed
    assert all(os.stat(tmp_path / key).st_mtime_ns == stamps[key] for key in before)
    assert finish(start(world, tmp_path)) == 0  # nothing is left


def test_two_drivers_at_once_make_one_table(world, undisturbed, tmp_path):
    processes = [start(world, tmp_path) for _ in range(2)]
    for process in processes:
        finish(process)
    assert Lake(tmp_path).files() == undisturbed


def test_a_bucket_behind_faults_holds_the_same_files_as_a_folder(
    world, undisturbed, moto_bucket, moto_proxy, monkeypatch
):
    """Every ninth write answers 503, two answers are lost after the write; files equal those of the local run."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_proxy.url)
    moto_proxy.rules = [
        *(Rule("status", method="PUT", first=n) for n in range(9, 400, 9)),
        *(Rule("lose_answer", method="PUT", first=n) for n in (5, 40)),
        *(Rule("cut_body", method="GET", first=n) for n in range(13, 400, 29)),
    ]
    try:
        lake = Lake(f"s3://{moto_bucket}/lake")
        report = lake.run(make_extract(world, (MODEL,), **CHANGES))
    finally:
        moto_proxy.rules = []
    assert report.exit_code == 0, report.failures
    assert lake.files() == undisturbed


@pytest.mark.slow
def test_an_actor_killed_in_the_middle_changes_no_file(world, undisturbed, tmp_path):
    process = start(world, tmp_path, "ray")
    wait_for_markers(tmp_path, 8, process)
    actors = [p for p in psutil.Process(process.pid).children(recursive=True) if "HostActor" in " ".join(p.cmdline())]
    assert actors
    actors[0].send_signal(signal.SIGKILL)
    finish(process)
    assert Lake(tmp_path).files() == undisturbed


@pytest.mark.slow
def test_a_driver_on_ray_killed_and_run_again_changes_no_file(world, undisturbed, tmp_path):
    process = start(world, tmp_path, "ray")
    wait_for_markers(tmp_path, 20, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finish(start(world, tmp_path, "ray"))
    assert Lake(tmp_path).files() == undisturbed
