"""Workers on Ray that die, over a bucket behind the proxy: the same promises as over a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.job_files import as_pipeline
from schemas.selftest_specs import SelftestSpec
from tests.faults import victim
from tests.faults.conftest import Place
from tests.lakes import Lake

pytestmark = pytest.mark.slow
ROWS = {"rows": 60, "shard_rows": 10, "variants": ("a", "b")}


def undisturbed(place: Place) -> dict[str, str]:
    lake = Lake(place.store("undisturbed"))
    assert lake.run(as_pipeline(SelftestSpec(**ROWS))).exit_code == 0
    return lake.files()


def test_workers_that_die_in_a_shard_are_replaced_and_no_row_changes(bucket: Place, tmp_path: Path) -> None:
    for shard in (1, 4):
        (tmp_path / f"crash-{shard}").touch()
    store = bucket.store("lake")
    said = victim.finish_well(
        victim.start(store, as_pipeline(SelftestSpec(**ROWS, crash_once_dir=str(tmp_path))), "ray")
    )
    assert (said["shard_lost"], said["published"]) == (2, 2)
    assert Lake(store).files() == undisturbed(bucket)


def test_a_shard_that_ends_every_worker_is_set_aside_and_named_and_the_others_are_kept(bucket: Place) -> None:
    store = bucket.store("lake")
    code, said, err = victim.finish(victim.start(store, as_pipeline(SelftestSpec(**ROWS, poison_shards=(3,))), "ray"))
    assert code == 1, err
    assert said["shard_lost"] == 3 and all("shard 3: WorkerLost" in failure for failure in said["failures"])
    lake = Lake(store)
    assert not [key for key in lake.store.list("stages") if key.endswith("published.json")]
    assert lake.run(as_pipeline(SelftestSpec(**ROWS))).exit_code == 0  # effort: the same stages
    done = [e["shard"] for e in lake.events if e["event"] == "shard_done"]
    assert sorted(done) == [3, 6]
    assert lake.files() == undisturbed(bucket)
