"""Nothing that must not matter does: order, other specs in the store, newer code, and damage after the fact."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.board import Board
from cluster.catalog import open_catalog
from cluster.cli.app import app
from cluster.executor import SerialExecutor, StopFlag
from cluster.inputs import StoreInputs
from cluster.shard_host import ShardHost
from cluster.stores.base import Store, make_store
from cluster.works import Outcome
from jobs import activations
from schemas.errors import DamagedPart
from schemas.job_files import as_pipeline
from schemas.pipeline_spec import PipelineSpec
from schemas.selftest_specs import SelftestSpec
from tests.faults import victim
from tests.faults.conftest import Place
from tests.lakes import Lake, export, make_extract
from tests.servers import plain_client

NUMBERS = as_pipeline(SelftestSpec(rows=50, shard_rows=10, variants=("a", "b")))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("world"), 40)


# -- order and number of workers


class ShuffledExecutor(SerialExecutor):
    """Several hosts in one process that take what is ready in an order of their own."""

    def __init__(self, store_uri: str, workers: int, seed: int) -> None:
        super().__init__(store_uri)
        self._hosts = [ShardHost(store_uri) for _ in range(workers)]
        self._rng = random.Random(seed)

    def run(self, board: Board, stop: StopFlag) -> Iterator[Outcome]:
        while not board.finished:
            task = self._rng.choice(list(board.ready()))
            board.hand_out(task)
            yield self._rng.choice(self._hosts).run(board.works[task.work], task)


def test_the_order_in_which_stages_are_done_that_read_each_other_changes_no_byte(tmp_path: Path) -> None:
    """Siblings `two` read stages that come in any order, and are then opened together or apart."""
    cell = {"kind": "selftest", "rows": 30, "shard_rows": 10}
    chain = {"a": {}, "b": {}, "two-a": {"reads": "a"}, "two-b": {"reads": "b"}, "last": {"reads": ["two-a", "two-b"]}}
    stages = {name: {**cell, "subject": name, **more} for name, more in chain.items()}
    stages["two-b"] |= {"subject": "two-a", "variants": ["c"]}
    spec = PipelineSpec.model_validate({"name": "chains", "stages": stages}, strict=False)
    quiet = Lake(tmp_path / "quiet")
    assert quiet.run(spec).exit_code == 0
    for workers, seed in ((1, 1), (3, 2), (3, 3)):
        store = str(tmp_path / f"shuffled-{seed}")
        lake = Lake(store, ShuffledExecutor(store, workers, seed))
        assert lake.run(spec).exit_code == 0 and lake.files() == quiet.files()


def test_order_and_number_of_workers_change_no_byte(place: Place) -> None:
    quiet = Lake(place.store("quiet"))
    assert quiet.run(NUMBERS).exit_code == 0
    for workers, seed in ((1, 1), (3, 2)):
        store = place.store(f"shuffled-{workers}")
        lake = Lake(store, ShuffledExecutor(store, workers, seed))
        assert lake.run(NUMBERS).exit_code == 0
        assert [e["shard"] for e in lake.events if e["event"] == "shard_done"] != list(range(6))
        assert lake.files() == quiet.files()


def test_extraction_in_another_order_by_several_workers_changes_no_byte(world: Path, tmp_path: Path) -> None:
    """The last shard has 8 images of 16 and the last batches are not full; merged outputs see shards in any order."""
    spec = make_extract(
        world,
        ("demo:clip-rn",),
        sites=["stage.4@map"],
        outputs=["activations", "activation_moments", "top_images", "embeddings"],
        batch_size=6,
        shard_rows=16,
    )
    quiet, store = Lake(tmp_path / "quiet"), str(tmp_path / "shuffled")
    assert quiet.run(spec).exit_code == 0
    lake = Lake(store, ShuffledExecutor(store, 2, 5))
    assert lake.run(spec).exit_code == 0
    assert lake.files() == quiet.files()


def test_clocks_that_are_wrong_and_jump_change_no_byte(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two drivers whose clocks are a day apart share a store; the second finds what the first has done."""
    quiet, lake = Lake(place.store("quiet")), Lake(place.store("lake"))
    assert quiet.run(NUMBERS).exit_code == 0
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + random.choice((-86_400, 0, 86_400)))
    bad = as_pipeline(SelftestSpec(rows=50, shard_rows=10, variants=("a", "b"), error_shards=(2,)))
    assert lake.run(bad).exit_code == 1
    assert lake.run(NUMBERS).exit_code == 0
    assert [e["shard"] for e in lake.events if e["event"] == "shard_done"] == [2, 5]
    assert lake.files() == quiet.files()


# -- several specs in one store


def test_two_specs_at_once_in_one_store_share_no_key_and_disturb_nothing(place: Place) -> None:
    specs = [
        as_pipeline(SelftestSpec(rows=60, shard_rows=10, seed=seed, sleep_ms=30, variants=("a", "b")))
        for seed in (1, 2)
    ]
    alone = []
    for n, spec in enumerate(specs):
        lake = Lake(place.store(f"alone-{n}"))
        assert lake.run(spec).exit_code == 0
        alone.append(lake.files())
    assert not alone[0].keys() & alone[1].keys()
    store = place.store("both")
    for process in [victim.start(store, spec) for spec in specs]:
        assert victim.finish_well(process)["published"] == 2
    assert Lake(store).files() == {**alone[0], **alone[1]}


# -- newer code


def test_a_new_version_of_a_method_makes_a_new_table_and_leaves_the_old_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_extract(world, ("demo:clip-rn",), sites=["stage.4@map:mean"], outputs=["activations", "embeddings"])
    lake = Lake(tmp_path / "lake")
    assert lake.run(spec).exit_code == 0
    before = lake.files()
    monkeypatch.setattr(activations, "METHOD", 2)
    report = lake.run(spec)
    assert report.exit_code == 0
    assert [(e["kind"], e["output"]) for e in lake.events if e["event"] == "published"] == [("extract", "activations")]
    after = lake.files()
    assert before.items() <= after.items()
    new = {key for key in after if key not in before}
    assert {key.split("/")[0] for key in new} == {"tables", "stages"}
    assert len({stage.digest for stage in report.state.stages if stage.output == "activations"}) == 1


# -- damage after publishing


def damage(store: Store, place: Place, key: str, data: bytes | None) -> None:
    """Overwrite or delete an object behind the store's back."""
    if place.proxy is None:
        path = Path(store.url(key))
        path.unlink() if data is None else path.write_bytes(data)
        return
    client, bucket = plain_client(place.proxy.upstream), place.root.removeprefix("s3://")
    name = f"{store.uri.removeprefix(place.root).strip('/')}/{key}"
    if data is None:
        client.delete_object(Bucket=bucket, Key=name)
    else:
        client.put_object(Bucket=bucket, Key=name, Body=data)


def miclip(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def keys_of(lake: Lake, table: str) -> Sequence[str]:
    return [part.key for part in open_catalog(lake.store).parts(table)]


def test_a_flipped_byte_is_named_by_verify_and_never_gives_fewer_rows(place: Place) -> None:
    lake = Lake(place.store("lake"))
    report = lake.run(NUMBERS)
    key = keys_of(lake, "selftest")[3]
    data = bytearray(lake.store.get(key))
    data[len(data) // 2] ^= 1
    damage(lake.store, place, key, bytes(data))
    result = miclip("verify", "--store", lake.uri, "--json")
    assert result.exit_code == 1
    assert [v["key"] for v in json.loads(result.stdout)["damaged"]] == [key]
    with pytest.raises(DamagedPart, match="Restore the object"):  # a stage that reads it compares the digest
        list(StoreInputs(lake.store).table(report.state.stages[0].digest, "selftest"))
    answer = miclip("sql", "--store", lake.uri, "--json", "SELECT count(*) AS n, count(row) AS rows FROM selftest")
    assert answer.exit_code != 0 or json.loads(answer.stdout) == [{"n": 100, "rows": 100}]


def test_a_deleted_part_is_named_by_verify_and_every_reader_refuses(place: Place) -> None:
    import miclip as api

    lake = Lake(place.store("lake"))
    report = lake.run(NUMBERS)
    key = keys_of(lake, "selftest")[4]
    damage(lake.store, place, key, None)
    result = miclip("verify", "--store", lake.uri)
    assert result.exit_code == 1 and key in result.stdout and "gone" in result.stdout
    answer = miclip("sql", "--store", lake.uri, "SELECT count(*) FROM selftest")
    assert answer.exit_code == 1 and key in answer.stderr
    with pytest.raises(DamagedPart, match="found nothing"):
        api.open(lake.uri).table("selftest")
    with pytest.raises(DamagedPart, match="is gone"):
        list(StoreInputs(make_store(lake.uri)).table(report.state.stages[0].digest, "selftest"))
