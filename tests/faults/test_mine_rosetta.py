"""A zoo that is compared while things go wrong: the tables are those of a quiet run, and one bad model spoils only its own pairs."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import miclip
from schemas.pipeline_spec import PipelineSpec
from tests.faults import victim
from tests.faults.conftest import Place
from tests.faults.test_models import WEIGHTS, copy_model
from tests.faults.test_sameness import ShuffledExecutor
from tests.lakes import Lake

pytestmark = pytest.mark.slow
ZOO = ("demo:clip-p16", "demo:clip-rn", "demo:resnet-sup")


def make_spec(models: tuple[str, ...] = ZOO, **fields: Any) -> PipelineSpec:
    """Three small models over 96 images, in shards of 40."""
    stage = {
        "kind": "mine_rosetta",
        "k": 3,
        "shard_rows": 40,
        "entries": 10,
        "exemplars": 2,
        "sites": ["mlp_act.*", "stage.*"],
    }
    data = {
        "kind": "pipeline",
        "name": "t",
        "images": {"ref": "world:seed=0,n=96"},
        "matrix": {"model": models},
        "stages": {"shared": {**stage, **fields}},
    }
    return PipelineSpec.model_validate(data, strict=False)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a run that nothing happened to."""
    lake = Lake(tmp_path_factory.mktemp("quiet") / "lake")
    report = lake.run(make_spec())
    assert report.exit_code == 0, report.failures
    assert len(lake.table(report, "rosetta_buddies")) and len(lake.table(report, "rosetta_exemplars"))
    return lake.files()


@pytest.mark.parametrize(
    ("key", "nth", "when"),
    [
        (r"rosetta_units/.*parquet$", 2, "before"),
        (r"shards/\d+\.done\.json$", 14, "after"),
        (r"rosetta_neighbours/.*parquet$", 3, "after"),
        (r"rosetta_pairs/.*parquet$", 4, "before"),
        (r"rosetta_cliques/.*parquet$", 1, "after"),
        (r"published\.json$", 9, "before"),
    ],
)
def test_a_driver_that_dies_leaves_a_zoo_that_goes_on_to_the_same_tables(
    quiet: dict[str, str], tmp_path: Path, key: str, nth: int, when: str
) -> None:
    store = str(tmp_path / "lake")
    code, _, err = victim.finish(victim.start(store, make_spec(), die={"key": key, "nth": nth, "when": when}))
    assert code == victim.DIED, err
    lake = Lake(store)
    assert lake.run(make_spec()).exit_code == 0
    assert lake.files() == quiet


def test_a_driver_killed_at_random_moments_ends_with_the_same_tables(quiet: dict[str, str], tmp_path: Path) -> None:
    rng, store = random.Random(3), str(tmp_path / "lake")
    for _ in range(3):
        process = victim.start(store, make_spec())
        time.sleep(rng.uniform(8, 25))
        process.kill()
        process.communicate()
    lake = Lake(store)
    assert lake.run(make_spec()).exit_code == 0
    assert lake.files() == quiet


def test_two_drivers_at_once_end_in_one_set_of_tables(quiet: dict[str, str], tmp_path: Path) -> None:
    store = str(tmp_path / "lake")
    both = [victim.start(store, make_spec()) for _ in range(2)]
    for process in both:
        victim.finish_well(process)
    assert Lake(store).files() == quiet


def test_three_workers_in_any_order_change_no_byte(quiet: dict[str, str], tmp_path: Path) -> None:
    store = str(tmp_path / "lake")
    lake = Lake(store, ShuffledExecutor(store, 3, seed=5))
    assert lake.run(make_spec()).exit_code == 0
    assert lake.files() == quiet


def test_a_finished_zoo_run_again_computes_nothing(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    assert lake.run(make_spec()).exit_code == 0
    before = lake.files()
    assert lake.run(make_spec()).exit_code == 0
    assert lake.count("shard_done") == 0 and lake.files() == before


def test_a_model_that_joins_a_zoo_of_two_brings_its_own_pairs_alone(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    assert lake.run(make_spec(ZOO[:2])).exit_code == 0
    before = set(lake.files())
    report = lake.run(make_spec())
    assert report.exit_code == 0, report.failures
    new = {key for key in lake.files() if key not in before and "/rosetta_pairs/" in key}
    assert sorted(key.split("/")[2] for key in new) == [
        "m=demo-clip-p16+demo-resnet-sup",
        "m=demo-clip-rn+demo-resnet-sup",
        "m=demo-resnet-sup",
    ]


@pytest.mark.parametrize("spoilt", ["inspected", "after"])
def test_a_model_that_cannot_be_loaded_spoils_only_its_own_pairs_and_is_named(tmp_path: Path, spoilt: str) -> None:
    """Damaged before anything is known of it, or between inspection and use."""
    bad = copy_model(tmp_path / "bad")
    models = (*ZOO[:2], bad)
    lake = Lake(tmp_path / "lake")
    weights = tmp_path / "bad" / WEIGHTS
    if spoilt == "after":
        _inspect(lake, models)
    weights.write_bytes(weights.read_bytes()[:5000])
    report = lake.run(make_spec(models))
    assert report.exit_code == 1
    assert any("clip-p8" in failure for failure in report.failures), report.failures
    published = {s.subject for s in report.state.stages if s.output == "pair" and s.state in ("published", "cached")}
    assert published == {"demo:clip-p16", "demo:clip-rn", "demo:clip-p16 + demo:clip-rn"}
    pairs = lake.table(report, "rosetta_pairs").select(["model_a", "model_b"]).to_pylist()
    assert {tuple(pair.values()) for pair in pairs} == {
        ("demo:clip-p16", "demo:clip-p16"),
        ("demo:clip-rn", "demo:clip-rn"),
        ("demo:clip-p16", "demo:clip-rn"),
    }


def _inspect(lake: Lake, models: tuple[str, ...]) -> None:
    """Publish the facts of the models, as `miclip plan --inspect` does."""
    stage = {"kind": "extract", "outputs": ["embeddings"], "batch_size": 32}
    data = {"kind": "pipeline", "name": "facts", "images": {"ref": "world:seed=1,n=8"}, "matrix": {"model": models}}
    spec = PipelineSpec.model_validate({**data, "stages": {"acts": stage}}, strict=False)
    assert lake.run(spec).exit_code == 0


def test_damaged_scratch_maps_change_nothing(
    quiet: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of the node's scratch space is cut short again and again while the zoo is compared."""
    monkeypatch.setenv("MICLIP_CACHE", str(tmp_path / "cache"))
    stop = threading.Event()

    def spoil() -> None:
        rng = random.Random(0)
        while not stop.wait(0.5):
            for path in (tmp_path / "cache").rglob("*"):
                if path.is_file() and rng.random() < 0.3:
                    _cut(path)

    spoiler = threading.Thread(target=spoil)
    spoiler.start()
    try:
        lake = Lake(tmp_path / "lake")
        assert lake.run(make_spec(maps="cache")).exit_code == 0
    finally:
        stop.set()
        spoiler.join()
    assert lake.files() == quiet


def _cut(path: Path) -> None:
    try:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    except FileNotFoundError:
        return


def test_a_zoo_in_a_bucket_is_the_zoo_in_a_folder_and_sql_reads_it_there(quiet: dict[str, str], bucket: Place) -> None:
    """Keys of pairs have both models in them, joined by a plus."""
    lake = Lake(bucket.store("lake"))
    assert lake.run(make_spec()).exit_code == 0
    assert lake.files() == quiet
    pairs = miclip.open(bucket.store("lake")).sql("SELECT DISTINCT model_a, model_b FROM rosetta_pairs")
    assert pairs.num_rows == 6


def test_three_ray_workers_give_the_tables_of_one(quiet: dict[str, str], tmp_path: Path) -> None:
    store = str(tmp_path / "lake")
    process = victim.start(store, make_spec(resources={"workers": 3}), executor="ray", cpus=3)
    victim.finish_well(process)
    assert Lake(store).files() == quiet
