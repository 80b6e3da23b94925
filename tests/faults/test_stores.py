"""Whole runs on a store that throttles, hangs, forgets to answer, is gone, or is full."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.runs import load_state
from cluster.stores.base import make_store
from schemas.job_files import as_pipeline
from schemas.pipeline_spec import PipelineSpec
from schemas.selftest_specs import SelftestSpec
from tests.faultproxy import Rule
from tests.faults.conftest import Place
from tests.faults.test_kills import start_command, write_spec
from tests.lakes import Lake, export, make_extract
from tests.servers import plain_client

SPEC = as_pipeline(SelftestSpec(rows=60, shard_rows=10, variants=("a", "b")))
BURSTS = [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests")]


def undisturbed(folder: Path, spec: PipelineSpec = SPEC) -> dict[str, str]:
    lake = Lake(folder / "undisturbed")
    assert lake.run(spec).exit_code == 0
    return lake.files()


@pytest.mark.parametrize(("status", "code"), BURSTS)
def test_a_burst_of_busy_answers_in_the_middle_changes_no_row_and_is_counted(
    bucket: Place, tmp_path: Path, status: int, code: str
) -> None:
    assert bucket.proxy is not None
    lake = Lake(bucket.store("lake"))
    burst = Rule("status", path="part-00003", status=status, code=code, times=3)
    with bucket.proxy.breaking(burst):
        report = lake.run(SPEC)
    assert report.exit_code == 0, report.failures
    assert burst.fired == 3
    assert [(e["shard"], e["notes"]) for e in lake.events if e.get("notes")] == [(3, ["store retries: 3"])]
    assert lake.files() == undisturbed(tmp_path)


def test_hangs_resets_torn_uploads_and_lost_answers_everywhere_change_no_row(
    bucket: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every first write of a plan, a part, a marker and a pointer is done and its answer lost; reads are cut."""
    assert bucket.proxy is not None
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "15")  # a request that hangs is sent again after a third of this
    rules = [
        Rule("lose_answer", method="PUT", path="plan.json"),
        Rule("lose_answer", method="PUT", path="part-00001-0"),
        Rule("lose_answer", method="PUT", path="00002.done.json"),
        Rule("lose_answer", method="PUT", path="published.json"),
        Rule("tear_upload", method="PUT", path="part-00003-0"),
        Rule("hang", method="PUT", path="00004.done.json", seconds=60),
        Rule("reset", method="GET", path="part-00005-0", times=2),
        *(Rule("cut_body", method="GET", path="part-", first=n) for n in (3, 7, 11)),
    ]
    lake = Lake(bucket.store("lake"))
    with bucket.proxy.breaking(*rules):
        report = lake.run(SPEC)
    assert report.exit_code == 0, report.failures
    assert [rule.fired for rule in rules[:7]] == [1, 1, 1, 1, 1, 1, 2]
    assert lake.files() == undisturbed(tmp_path)
    assert lake.count("published") == 2


def test_a_store_that_goes_away_for_ever_ends_the_command_within_its_budget_with_code_3(
    bucket: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has done a few shards when every further request fails; what is done stays for the next run."""
    assert bucket.proxy is not None
    budget = 6.0
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", str(budget))
    spec = write_spec(tmp_path, rows=200, shard_rows=10)
    store = bucket.store("lake")
    order = ("run", str(spec), "--store", store, "--executor", "serial")
    with bucket.proxy.breaking(Rule("status", path="part-00003", times=1e9), Rule("reset", path="never")) as proxy:
        process = start_command(tmp_path, *order)
        deadline = time.monotonic() + 240
        while not proxy.rules[0].fired:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        gone = time.monotonic()
        proxy.rules = [Rule("status", times=1e9)]
        out, err = process.communicate(timeout=240)
        seconds = time.monotonic() - gone
    assert process.returncode == 3, (out, err)
    assert f"the budget is {budget:g} s, MICLIP_STORE_BUDGET_S" in err and "Traceback" not in err + out
    # the worker's patience, then that of the driver, which has the state to write; the rest is for a slow machine
    assert seconds < 2 * budget + 30
    lake = Lake(store)
    keys = lake.store.list("stages")
    assert not [key for key in keys if key.endswith("published.json")]
    assert [key[-15:] for key in keys if key.endswith("done.json")] == [f"0000{n}.done.json" for n in range(3)]
    monkeypatch.delenv("MICLIP_STORE_BUDGET_S")
    assert lake.run(as_pipeline(SelftestSpec(rows=200, shard_rows=10))).exit_code == 0
    assert lake.count("shard_done") == 21 - 3


# -- a disk that fails


def test_a_disk_that_stumbles_now_and_then_changes_no_row_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fifth call that makes a write durable fails with EIO, of the driver and of the worker."""
    expected, calls, fsync = undisturbed(tmp_path), itertools.count(1), os.fsync

    def stumble(descriptor: int) -> None:
        if next(calls) % 5 == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", stumble)
    lake = Lake(tmp_path / "lake")
    report = lake.run(SPEC)
    assert report.exit_code == 0, report.failures
    assert next(calls) > 50 and lake.files() == expected
    assert any(note.startswith("store retries: ") for event in lake.events for note in event.get("notes", ()))


# -- a full disk


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond this, as on a disk that is full; Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_part_that_does_not_fit_fails_its_shard_with_path_and_bytes_and_the_others_go_on(tmp_path: Path) -> None:
    """The first shard of `big` has 4,000 rows and does not fit 30 kB; the second has 10, and `small` fits too."""
    spec = PipelineSpec.model_validate(
        {
            "name": "full",
            "stages": {
                "big": {"kind": "selftest", "subject": "big", "rows": 4010, "shard_rows": 4000},
                "small": {"kind": "selftest", "subject": "small", "rows": 20, "shard_rows": 10},
            },
        },
        strict=False,
    )
    lake = Lake(tmp_path / "lake")
    with largest_file(30_000):
        report = lake.run(spec)
    assert report.exit_code == 1
    (failure,) = report.failures
    assert "big" in failure and "shard 0: StoreFull" in failure and "part-00000-0.parquet" in failure
    assert "bytes were needed and nothing was kept; free some space there" in failure
    assert {s.subject: s.state for s in report.state.stages} == {"big": "failed", "small": "published"}
    (big,) = [s for s in report.state.stages if s.subject == "big"]
    assert big.shards_done == 1
    assert not list((tmp_path / "lake").rglob(".tmp*"))
    report = lake.run(spec)  # with space again, the one shard and the merge are left
    assert report.exit_code == 0 and lake.count("shard_done") == 2


def test_a_service_that_is_full_for_one_part_fails_its_shard_alone(bucket: Place) -> None:
    assert bucket.proxy is not None
    lake = Lake(bucket.store("lake"))
    with bucket.proxy.breaking(
        Rule("status", method="PUT", path="part-00002", status=507, code="QuotaExceeded", times=9)
    ):
        report = lake.run(SPEC)
    assert report.exit_code == 1
    assert all("shard 2: StoreFull" in f and "bytes were needed" in f for f in report.failures)
    assert [s.shards_done for s in report.state.stages] == [5, 5]
    assert lake.run(SPEC).exit_code == 0


# -- reading images from a bucket


def test_an_image_that_comes_cut_or_late_is_never_a_short_image(bucket: Place, tmp_path: Path) -> None:
    """The images lie in the bucket too; every seventh read of one is cut, every eleventh reset."""
    assert bucket.proxy is not None
    world = export(tmp_path / "world", 40)
    client, name = plain_client(os.environ["AWS_ENDPOINT_URL"]), bucket.root.removeprefix("s3://")
    for path in sorted((world / "images").glob("*.png")):
        client.put_object(Bucket=name, Key=f"photos/{path.name}", Body=path.read_bytes())

    def spec(where: str) -> PipelineSpec:
        changes = {"sites": [], "outputs": ["embeddings"], "batch_size": 8, "shard_rows": 16}
        return make_extract(world, ("demo:clip-rn",), images={"ref": f"folder:{where}"}, **changes)

    quiet, lake = Lake(tmp_path / "quiet"), Lake(bucket.store("lake"))
    expected = quiet.run(spec(f"{world}/images"))
    rules = [Rule("cut_body", method="GET", path=r"photos/\d+", first=n) for n in range(7, 200, 7)]
    rules += [Rule("reset", method="GET", path=r"photos/\d+", first=n) for n in range(11, 200, 11)]
    with bucket.proxy.breaking(*rules):
        report = lake.run(spec(f"{bucket.root}/photos"))
    assert report.exit_code == 0, report.failures
    assert sum(rule.fired for rule in rules) > 5
    columns = ["image_id", "image_index", "embedding"]
    assert lake.table(report, "embeddings").select(columns) == quiet.table(expected, "embeddings").select(columns)
    assert lake.table(report, "bad_inputs").num_rows == 0
    assert load_state(make_store(lake.uri), report.state.run).status == "DONE"
