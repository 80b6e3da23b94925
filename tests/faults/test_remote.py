"""A spec handed to a cluster of several machines: machines and drivers die, people cancel, and no row is lost or doubled."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.runs import load_options, load_state
from cluster.stores.base import make_store
from schemas.job_files import as_pipeline
from schemas.selftest_specs import SelftestSpec
from tests.lakes import Lake
from tests.on_cluster import Place, kill, start_cluster, wait_until

pytestmark = pytest.mark.slow
SHARDS = {"rows": 60, "shard_rows": 3, "variants": ("a", "b")}
LONG_MS = 5000
"""Of a shard, where a command must come while the run goes on: twenty of them leave it most of a minute."""
SECRET = "kqzj7wvbx3marker"
SECRETS = {"AWS_SECRET_ACCESS_KEY": SECRET, "HF_TOKEN": f"hf_{SECRET}", "MY_DATABASE_PASSWORD": SECRET}
"""Of the nodes, and of whoever submits."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with start_cluster(tmp_path_factory.mktemp("cluster"), **SECRETS) as place:
        yield place


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a run that nothing happened to."""
    lake = Lake(tmp_path_factory.mktemp("quiet"))
    assert lake.run(as_pipeline(SelftestSpec(**SHARDS))).exit_code == 0
    return lake.files()


def write_spec(folder: Path, sleep_ms: int = 1000) -> Path:
    spec = folder / "far.yaml"
    spec.write_text(json.dumps({"kind": "selftest", "name": "far", "store": "lake", "sleep_ms": sleep_ms, **SHARDS}))
    return spec


def wait_for_markers(store: Path, n: int) -> None:
    wait_until(lambda: len(list(store.rglob("*.done.json"))) >= n, lambda: f"fewer than {n} markers")


def test_a_submitted_run_is_watched_to_its_end_while_a_machine_dies(
    place: Place, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    spec, store = write_spec(tmp_path), tmp_path / "lake"
    first = place.submit(spec)
    assert first["new"] and first["id"].startswith("far-") and first["id"].endswith("-a1")
    again = place.submit(spec)
    assert (again["id"], again["new"]) == (first["id"], False)
    watching = place.start("watch", first["id"], "--store", str(store), "--address", place.url)
    wait_for_markers(store, 4)
    place.lose_a_machine()
    out, err = watching.communicate(timeout=400)
    assert watching.returncode == 0, err
    assert "far-00001 done" in out and "lost its worker, trying again" in err
    assert Lake(store).files() == undisturbed
    assert load_options(make_store(str(store)), "far-00001").submission == first["id"]
    told = place.miclip("logs", first["id"], "--driver", "--address", place.url)
    assert "far-00001 done" in told


def test_a_cancelled_run_ends_says_so_everywhere_and_a_retry_finishes_it(
    place: Place, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    spec, store = write_spec(tmp_path, sleep_ms=LONG_MS), tmp_path / "lake"
    first = place.submit(spec)
    watching = place.start("watch", first["id"], "--store", str(store), "--address", place.url)
    wait_for_markers(store, 2)
    assert "CANCELLED" in place.miclip("cancel", first["id"], "--store", str(store))
    assert watching.wait(timeout=120) == 130
    state = load_state(make_store(str(store)), "far-00001")
    assert (state.status, state.exit_code) == ("CANCELLED", 130)
    assert not list(store.rglob("published.json"))
    wait_until(lambda: place.status_of(first["id"]) == "FAILED")  # 130 is no success
    done = len(list(store.rglob("*.done.json")))
    again = json.loads(place.miclip("retry", "far-00001", "--store", str(store), "--json"))
    assert again["id"] == first["id"][:-1] + "2" and again["new"]
    place.miclip("watch", again["id"], "--store", str(store), "--address", place.url)
    lake = Lake(store)
    assert lake.files() == undisturbed
    computed = [len(e["stages"]) for e in place.events(store, "far-00002") if e["event"] == "shard_done"]
    assert sum(computed) == 42 - done  # 20 shards and a merge of each of two stages
    assert "DONE" in place.miclip("cancel", again["id"], "--store", str(store))


def test_a_driver_that_is_killed_is_submitted_again_and_does_what_is_left(
    place: Place, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    spec, store = write_spec(tmp_path), tmp_path / "lake"
    first = place.submit(spec)
    wait_for_markers(store, 4)
    kill(place.driver(first["id"]))
    assert load_state(make_store(str(store)), "far-00001").status == "RUNNING"  # it could not say anything
    wait_until(lambda: place.status_of(first["id"]) == "FAILED")
    told = place.miclip("submit", str(spec), "--address", place.url, "--python", sys.executable, "--wait")
    assert first["id"][:-1] + "2 submitted" in told and "far-00002 done" in told
    assert Lake(store).files() == undisturbed


def test_a_driver_that_is_told_to_go_leaves_its_state_within_two_seconds(place: Place, tmp_path: Path) -> None:
    """As a machine that is taken back tells it, and by the driver's own stopwatch: no shard of five minutes is waited for."""
    spec, store = write_spec(tmp_path, sleep_ms=300_000), tmp_path / "lake"
    first = place.submit(spec)
    run = place.run_of(str(store), first["id"])
    opened = make_store(str(store))
    driver = place.driver(first["id"])
    wait_until(lambda: bool([e for e in place.events(store, run) if e["event"] == "planned"]))
    driver.send_signal(signal.SIGTERM)
    wait_until(lambda: place.status_of(first["id"]) == "FAILED")
    state = load_state(opened, run)
    assert (state.status, state.exit_code) == ("INTERRUPTED", 143)
    (stopped,) = [event for event in place.events(store, run) if event["event"] == "stopped"]
    assert stopped["saved_after"] < 2.0


def files_with_secret(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in found if SECRET.encode() in path.read_bytes()]


def test_a_secret_of_the_nodes_is_in_no_log_of_the_cluster_no_object_and_no_page(place: Place, tmp_path: Path) -> None:
    """A run whose shards fail with tracebacks, on nodes that hold credentials, as nodes must."""
    spec, store = write_spec(tmp_path), tmp_path / "lake"
    first = place.submit(spec, "--set", "error_shards=[2]", **SECRETS)
    wait_for_markers(store, 2)
    assert place.driver(first["id"]).environ()["AWS_SECRET_ACCESS_KEY"] == SECRET
    watched = place.miclip("watch", first["id"], "--store", str(store), "--address", place.url, code=1)
    assert "far-00001 failed" in watched and "told to fail" in watched
    told = place.miclip("logs", first["id"], "--driver", "--address", place.url)
    told += place.miclip("logs", "far-00001", "--failed", "--store", str(store))
    assert "told to fail" in told and "Traceback" in told
    place.miclip("report", "far-00001", "--store", str(store), "--to", str(tmp_path / "report.html"))
    assert SECRET not in watched + told + place.jobs_as_text()
    assert len(list(place.session.rglob("*.log"))) > 10 and len(list(store.rglob("*.json"))) > 10
    logs = Path(os.environ["XDG_STATE_HOME"])
    assert list(logs.rglob("far-00001.log"))
    assert files_with_secret(place.session) == files_with_secret(logs.parent) == files_with_secret(tmp_path) == []


def test_what_no_machine_has_is_refused_before_anything_is_submitted(place: Place, tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    told = place.miclip("submit", str(spec), "--address", place.url, "--set", "resources.gpus=2", code=2)
    assert "resources.gpus 2 asked for each worker, the largest machine of the cluster has 0" in told
    assert not (tmp_path / "lake").exists()
    store = f"s3://{'AKIA' + 'A' * 16}/lake"
    told = place.miclip("submit", str(spec), "--address", place.url, "--store", store, code=2)
    assert "looks like a credential" in told and "AKIA" not in told
    assert "AKIA" not in place.jobs_as_text()


def test_another_token_opens_nothing(place: Place, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    told = place.miclip(
        "submit", str(write_spec(tmp_path)), "--address", place.url, code=3, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token")
    )
    assert "refused our token" in told and "Traceback" not in told


def test_the_source_of_this_package_can_be_sent_along(place: Place, tmp_path: Path) -> None:
    first = place.submit(write_spec(tmp_path), "--ship")
    wait_for_markers(tmp_path / "lake", 2)
    assert "py_modules_files" in place.driver(first["id"]).environ()["PYTHONPATH"]
    place.miclip("watch", first["id"], "--store", str(tmp_path / "lake"), "--address", place.url)


def test_of_two_people_who_submit_at_one_moment_one_starts_it_and_the_other_is_told(
    place: Place, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, sleep_ms=0)
    order = ("submit", str(spec), "--address", place.url, "--python", sys.executable, "--json")
    both = [place.start(*order) for _ in range(2)]
    said = [json.loads(process.communicate(timeout=300)[0]) for process in both]
    assert sorted(answer["new"] for answer in said) == [False, True]
    assert said[0]["id"] == said[1]["id"]
    place.miclip("watch", said[0]["id"], "--store", str(tmp_path / "lake"), "--address", place.url)


def test_a_driver_that_does_not_look_at_the_store_is_ended_by_its_cluster(place: Place, tmp_path: Path) -> None:
    first = place.submit(write_spec(tmp_path, sleep_ms=LONG_MS))
    store = str(tmp_path / "lake")
    wait_for_markers(tmp_path / "lake", 2)
    place.driver(first["id"]).suspend()  # hears neither of the flag nor of SIGTERM
    assert "CANCELLED" in place.miclip("cancel", first["id"], "--store", store, "--seconds", "4")
    wait_until(lambda: place.status_of(first["id"]) in ("STOPPED", "FAILED"))
    assert load_state(make_store(store), "far-00001").status == "CANCELLED"


def test_what_goes_wrong_before_a_run_begins_is_told_to_who_waits_for_it(place: Place, tmp_path: Path) -> None:
    spec = str(write_spec(tmp_path))
    order = ("submit", spec, "--address", place.url, "--wait")
    told = place.miclip(*order, "--python", "/no/such/python", code=1)
    assert "before its run began" in told and "/no/such/python" in told
    told = place.miclip(*order, "--python", sys.executable, "--set", "resources.gpus=2", "--grows", code=2)
    assert "far-00001 STOPPED" in told and "resources.gpus 2 asked" in told
