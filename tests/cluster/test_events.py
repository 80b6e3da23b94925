"""Events of a run: in order, outside of what readers list, and a sign of life while nothing happens."""

from __future__ import annotations

import time

import pytest

from cluster import events
from cluster.events import StoreEvents, last_sign, read_events, read_segments
from cluster.stores.base import Store, make_store


@pytest.fixture
def store(tmp_path) -> Store:
    return make_store(str(tmp_path))


def test_events_are_not_among_what_is_listed_to_find_runs(store):
    log = StoreEvents(store, "test-00001")
    log({"event": "one"})
    log.flush()
    assert store.list("runs") == [] and store.list("") == ["events/test-00001/000000.jsonl"]


def test_segments_are_written_less_often_the_longer_a_run_takes(store, monkeypatch):
    """One event a second for 8 hours: a segment every 2 seconds would be 14,400 objects."""
    clock = [0.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: clock[0])
    log = StoreEvents(store, "test-00001")
    monkeypatch.setattr(store, "create", lambda key, data: bool(written.append(key)) or True)
    written: list[str] = []
    for second in range(8 * 3600):
        clock[0] = float(second)
        log({"event": "tick"})
    assert 400 < len(written) < 600


def test_an_event_that_waits_is_written_while_nothing_happens(store, monkeypatch):
    monkeypatch.setattr(events, "FIRST_PAUSE", 0.05)
    log = StoreEvents(store, "test-00001")
    log.start()
    log({"event": "one"})
    deadline = time.monotonic() + 240
    while not read_events(store, "test-00001") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert read_events(store, "test-00001") == [{"event": "one"}]
    log({"event": "two"})
    log.close()
    assert read_events(store, "test-00001") == [{"event": "one"}, {"event": "two"}]
    assert [len(segment) for segment in read_segments(store, "test-00001", known=1)] == [1]


def test_a_driver_says_that_it_lives(store):
    assert last_sign(store, "test-00001") is None
    log = StoreEvents(store, "test-00001")
    log.start()
    log.close()
    sign = last_sign(store, "test-00001")
    assert sign is not None and abs(time.time() - sign) < 60
    assert read_events(store, "test-00001") == []


def test_a_store_that_is_away_does_not_end_the_signs(store, monkeypatch):
    from schemas.errors import StoreUnreachable

    def away(key: str, data: bytes) -> None:
        asked.append(key)
        raise StoreUnreachable("away")

    asked: list[str] = []
    monkeypatch.setattr(events, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(events, "ALIVE_SECONDS", 0.0)
    monkeypatch.setattr(store, "replace", away)
    log = StoreEvents(store, "test-00001")
    log.start()
    deadline = time.monotonic() + 240
    while len(asked) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    log.close()
    assert len(asked) >= 3
