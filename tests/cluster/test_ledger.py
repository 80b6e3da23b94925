"""The books of a stage: the first plan holds, markers say what is done, one pointer publishes, damage is never published."""

from __future__ import annotations

import threading

import pytest

from cluster import ledger
from cluster.executor import SerialExecutor
from cluster.stores.base import Store, make_store
from cluster.works import Outcome, Task, group_siblings
from schemas import layout
from schemas.errors import DamagedPart, KeyMissing
from schemas.plans import DoneMarker, Plan, Published, Round, StageSpec, StoredArtifact, StoredPart
from tests.corridor import run, selftest


@pytest.fixture
def store(tmp_path) -> Store:
    return make_store(str(tmp_path))


def make_plan(shard_rows: int = 10, rows: int = 20) -> Plan:
    stage = StageSpec(kind="selftest", method=1, subject="x", output="rows", params={"rows": rows, "seed": 0})
    return Plan(stage=stage, rounds=(Round(name="map", rows=rows, shard_rows=shard_rows),), worker="w")


def put_part(store: Store, plan: Plan, shard: int, data: bytes) -> StoredPart:
    key = layout.part_key("selftest", plan.stage, list(plan.all_shards())[shard], 0)
    store.create(key, data)
    return StoredPart(table="selftest", key=key, rows=10, bytes=len(data), sha256=ledger.sha256(data))


def mark_done(store: Store, plan: Plan, shard: int, *parts: StoredPart, artifacts: tuple[StoredArtifact, ...] = ()):
    marker = DoneMarker(shard=shard, round=0, parts=parts, artifacts=artifacts)
    store.create(layout.done_key(plan.digest, shard), marker.canonical_json().encode())


# -- plans


def test_the_first_plan_of_a_stage_holds_for_whoever_plans_second(store):
    first, second = make_plan(shard_rows=10), make_plan(shard_rows=7)
    assert first.digest == second.digest  # how work is cut is no result
    assert ledger.freeze_plan(store, first) == first
    assert ledger.freeze_plan(store, second) == first
    assert ledger.load_plan(store, first.digest).rounds[0].shard_rows == 10


def test_drivers_that_plan_at_the_same_moment_agree(store):
    plans = [make_plan(shard_rows=n) for n in range(1, 9)]
    got: list[Plan] = []
    start = threading.Barrier(len(plans))

    def freeze(plan: Plan) -> None:
        start.wait()
        got.append(ledger.freeze_plan(store, plan))

    threads = [threading.Thread(target=freeze, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8 and len({plan.rounds[0].shard_rows for plan in got}) == 1


# -- markers


def test_a_failed_marker_does_not_count_as_done_and_a_done_one_supersedes_it(store):
    plan = make_plan()
    (work,) = group_siblings([(plan, selftest()[0][1])])
    for shard in plan.all_shards():
        task = Task(work.key, shard, (plan.digest,))
        failed = Outcome(task, "failed", error="ValueError", message=f"no {shard.number}", traceback="Traceback ...")
        ledger.record_failure(store, failed)
    assert ledger.done_shards(store, plan.digest) == set()
    assert [f.message for f in ledger.load_failures(store, plan.digest)] == ["no 0", "no 1"]
    mark_done(store, plan, 0)
    assert ledger.done_shards(store, plan.digest) == {0}
    (left,) = ledger.load_failures(store, plan.digest)
    assert (left.shard, left.error, left.traceback, left.attempts) == (1, "ValueError", "Traceback ...", 1)


def test_the_artifact_of_a_shard_is_checked_against_its_marker(store):
    plan, key = make_plan(), "stages/x/artifacts/00000-sums"
    store.create(key, b"12345")
    sums = StoredArtifact(name="sums", key=key, bytes=5, sha256=ledger.sha256(b"12345"))
    mark_done(store, plan, 0, artifacts=(sums,))
    assert ledger.load_artifact(store, plan.digest, 0, "sums") == b"12345"
    with pytest.raises(KeyMissing, match="no artifact 'weights'"):
        ledger.load_artifact(store, plan.digest, 0, "weights")
    store.replace(key, b"12354")
    with pytest.raises(DamagedPart, match="expected 5 bytes with sha256"):
        ledger.load_artifact(store, plan.digest, 0, "sums")


# -- publishing


def test_parts_are_published_in_shard_order_and_an_empty_table_has_no_parts(store):
    plan = make_plan()
    parts = [put_part(store, plan, shard, bytes([shard] * 3)) for shard in (1, 0)]
    mark_done(store, plan, 1, parts[0])
    mark_done(store, plan, 0, parts[1])
    published = ledger.publish(store, plan, ("selftest", "bad_inputs"))
    assert [p.key[-20:] for p in published.tables["selftest"]] == ["part-00000-0.parquet", "part-00001-0.parquet"]
    assert published.tables["bad_inputs"] == () and published.rows("selftest") == 20
    assert ledger.load_published(store, plan.digest) == published


def test_a_stage_is_published_once_and_the_earlier_pointer_stands(store):
    plan = make_plan()
    for shard in (0, 1):
        mark_done(store, plan, shard, put_part(store, plan, shard, b"abc"))
    first = ledger.publish(store, plan, ("selftest",))
    assert ledger.publish(store, plan, ("selftest", "bad_inputs")) == first


@pytest.mark.parametrize(("change", "found"), [("gone", "found nothing"), ("cut", "found 2 bytes")])
def test_a_part_that_is_gone_or_cut_is_never_published(store, tmp_path, change, found):
    plan = make_plan()
    parts = [put_part(store, plan, shard, b"abc") for shard in (0, 1)]
    for shard, part in enumerate(parts):
        mark_done(store, plan, shard, part)
    path = tmp_path / parts[1].key
    path.unlink() if change == "gone" else path.write_bytes(b"ab")
    with pytest.raises(DamagedPart, match=f"part-00001-0.parquet should hold 3 bytes, {found}; .* not published"):
        ledger.publish(store, plan, ("selftest",))
    assert ledger.load_published(store, plan.digest) is None
    with pytest.raises(DamagedPart, match=f"or remove {tmp_path}/stages/{plan.digest}/shards/00001.done.json and run"):
        ledger.publish(store, plan, ("selftest",))


def test_a_stage_with_a_shard_that_is_not_done_cannot_be_published(store):
    plan = make_plan()
    mark_done(store, plan, 0, put_part(store, plan, 0, b"abc"))
    with pytest.raises(KeyMissing):
        ledger.publish(store, plan, ("selftest",))


def test_bytes_behind_a_key_are_given_only_if_they_are_those_that_the_marker_names(store):
    part = put_part(store, make_plan(), 0, b"abc")
    assert ledger.get_checked(store, part) == b"abc"
    store.replace(part.key, b"abd")
    with pytest.raises(DamagedPart, match="expected 3 bytes with sha256 ba7816bf8f01"):  # sha256 of "abc"
        ledger.get_checked(store, part)
    with pytest.raises(DamagedPart, match="is named by a marker but is gone"):
        ledger.get_checked(store, part.model_copy(update={"key": "tables/none"}))


def test_content_follows_the_bytes_or_the_artifact_of_that_name(store, tmp_path):
    """Downstream digests take it: the same parts in two stores are the same content, one other byte is another."""

    def content(name: str, data: bytes, *artifacts: StoredArtifact) -> str:
        other, plan = make_store(str(tmp_path / name)), make_plan(rows=10)
        mark_done(other, plan, 0, put_part(other, plan, 0, data), artifacts=artifacts)
        for artifact in artifacts:
            other.create(artifact.key, b"12345")
        return ledger.publish(other, plan, ("selftest",), ("content",)).content

    assert content("a", b"abc") == content("b", b"abc") != content("c", b"abd")
    named = StoredArtifact(name="content", key="stages/x/artifacts/c", bytes=5, sha256="5" * 64)
    assert content("d", b"abc", named) == content("e", b"abd", named) == "5" * 64


def test_what_a_run_published_says_where_every_row_is(tmp_path):
    todo = selftest(rows=25, shard_rows=10)
    run(todo, str(tmp_path), SerialExecutor(str(tmp_path)))
    published = ledger.load_published(make_store(str(tmp_path)), todo[0][0].digest)
    assert isinstance(published, Published)
    assert [part.rows for part in published.tables["selftest"]] == [10, 10, 5]
    assert published.rows("selftest_summary") == 1
