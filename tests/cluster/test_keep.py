"""Numbered states of a long shard: the newest whole one is where a later try goes on."""

from __future__ import annotations

import pytest

from cluster.keep import StoreKeep
from cluster.stores.base import make_store
from schemas import layout


@pytest.fixture
def store(tmp_path):
    return make_store(str(tmp_path))


def test_a_shard_that_saved_nothing_starts_from_the_beginning(store):
    assert StoreKeep(store, "stage", 0).latest() is None


def test_the_newest_state_wins_whatever_its_number_of_digits(store):
    keep = StoreKeep(store, "stage", 0)
    for step in (9, 10, 100, 99):
        keep.save(step, f"after {step}".encode())
    assert StoreKeep(store, "stage", 0).latest() == (100, b"after 100")


def test_a_torn_or_altered_state_is_passed_over(store):
    keep = StoreKeep(store, "stage", 0)
    for step in (1, 2, 3, 4):
        keep.save(step, b"state " * 100)
    whole = store.get(layout.keep_key("stage", 0, 4))
    store.replace(layout.keep_key("stage", 0, 4), whole[:-1])
    store.replace(layout.keep_key("stage", 0, 3), b"")
    store.replace(layout.keep_key("stage", 0, 2), whole[:200] + b"X" + whole[201:])
    assert keep.latest() == (1, b"state " * 100)


def test_a_state_saved_before_under_the_same_step_stands(store):
    StoreKeep(store, "stage", 0).save(5, b"first try")
    StoreKeep(store, "stage", 0).save(5, b"second try")
    assert StoreKeep(store, "stage", 0).latest() == (5, b"first try")


def test_shards_and_stages_do_not_see_each_others_states(store):
    StoreKeep(store, "stage", 1).save(7, b"one")
    assert StoreKeep(store, "stage", 10).latest() is None
    assert StoreKeep(store, "other", 1).latest() is None
    assert StoreKeep(store, "stage", 1).latest() == (7, b"one")


def test_an_empty_state_is_a_state(store):
    StoreKeep(store, "stage", 0).save(1, b"")
    assert StoreKeep(store, "stage", 0).latest() == (1, b"")
