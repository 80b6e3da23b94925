"""Numbered states of a long shard: the newest whole one is where a later try goes on, and few of them stay."""

from __future__ import annotations

import pytest

from cluster.keep import StoreKeep, newest_step
from cluster.stores.base import make_store
from schemas import layout
from schemas.errors import UnsafeName


@pytest.fixture
def store(tmp_path):
    return make_store(str(tmp_path))


def state(step: int) -> list[tuple[str, bytes]]:
    return [("weights", b"w%d " % step * 100), ("metrics", b"m%d" % step)]


def newest(store, stage="stage", shard=0):
    found = StoreKeep(store, shard).latest(stage)
    return found and (found[0], dict(found[1]))


def test_a_shard_that_saved_nothing_starts_from_the_beginning(store):
    assert newest(store) is None


def test_the_newest_state_wins_whatever_its_number_of_digits(store):
    keep = StoreKeep(store, 0)
    for step in (9, 10, 100):
        keep.save("stage", step, state(step))
    assert newest(store) == (100, dict(state(100)))


def test_two_states_stay_and_older_ones_are_dropped_whole(store):
    keep = StoreKeep(store, 0)
    for step in (1, 2, 3, 4):
        keep.save("stage", step, state(step))
    left = store.list(layout.keep_prefix("stage", 0))
    assert {key.rsplit("/", 1)[1].split("-")[0] for key in left} == {"000000000003", "000000000004"}
    assert len(left) == 6


@pytest.mark.parametrize("damage", ["torn piece", "altered piece", "no piece", "torn list", "no list"])
def test_a_damaged_state_is_passed_over(store, damage):
    keep = StoreKeep(store, 0)
    for step in (1, 2):
        keep.save("stage", step, state(step))
    piece, listed = layout.keep_key("stage", 0, 2, "weights"), layout.keep_key("stage", 0, 2)
    if damage.startswith("no"):
        store.drop_state(piece if "piece" in damage else listed)
    elif damage == "altered piece":
        store.replace(piece, b"X" + store.get(piece)[1:])
    else:
        key = piece if "piece" in damage else listed
        store.replace(key, store.get(key)[:-1])
    assert newest(store) == (1, dict(state(1)))


def test_a_state_saved_before_under_the_same_step_stands(store):
    StoreKeep(store, 0).save("stage", 5, [("weights", b"first try")])
    StoreKeep(store, 0).save("stage", 5, [("weights", b"second try")])
    assert newest(store) == (5, {"weights": b"first try"})


def test_stages_and_shards_do_not_see_each_other(store):
    StoreKeep(store, 0).save("stage", 1, state(1))
    assert newest(store, stage="other") is None and newest(store, shard=1) is None


def test_a_finished_shard_forgets_the_states_of_the_stages_that_it_used_and_no_others(store):
    StoreKeep(store, 0).save("other", 1, state(1))
    keep = StoreKeep(store, 0)
    keep.save("stage", 1, state(1))
    keep.drop_all()
    assert newest(store) is None and newest(store, stage="other") is not None


@pytest.mark.parametrize(
    "key",
    ["stages/x/published.json", "tables/t/part-00000-0.parquet", "stages/x/keep/00000/1", "stages/x/keep/../plan.json"],
)
def test_nothing_but_a_state_can_be_dropped(store, key):
    with pytest.raises(UnsafeName, match="only those may be dropped"):
        store.drop_state(key)


def test_the_newest_step_of_a_stage_is_known_without_reading_a_state(store):
    assert newest_step(store, "stage") is None
    StoreKeep(store, 0).save("stage", 7, state(7))
    StoreKeep(store, 3).save("stage", 12, state(12))
    assert newest_step(store, "stage") == 12
