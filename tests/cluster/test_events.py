"""Events of a run: in order, outside of what readers list, and a sign of life while nothing happens."""

from __future__ import annotations

import time
from unittest.mock import Mock

import pytest

from cluster import events
from cluster.events import EventLog, StoreEvents, read_events, read_segments
from cluster.stores.base import Store, make_store
from schemas.errors import StoreUnreachable
from tests.lossy import LossyStore


@pytest.fixture
def store(tmp_path) -> Store:
    return make_store(str(tmp_path))


def test_events_are_not_among_what_is_listed_to_find_runs(store):
    log = StoreEvents(store, "test-00001")
    log({"event": "one"})
    log.flush()
    assert store.list("runs") == [] and store.list("") == ["events/test-00001/000000.jsonl"]


@pytest.mark.parametrize("lost", [1, 2])
def test_a_segment_whose_answer_was_lost_is_not_written_twice(tmp_path, lost):
    store = LossyStore(str(tmp_path), lost)
    log = StoreEvents(store, "test-00001")
    for event in ("one", "two", "three"):
        log({"event": event})
        log.flush()
    assert [event["event"] for event in read_events(store, "test-00001")] == ["one", "two", "three"]


def test_a_segment_that_arrived_though_its_store_went_away_is_not_written_twice(store, monkeypatch):
    log, create = StoreEvents(store, "test-00001"), store.create

    def arrive(key, data):
        create(key, data)
        raise StoreUnreachable("no answer")

    log({"event": "one"})
    with monkeypatch.context() as away:
        away.setattr(store, "create", arrive)
        with pytest.raises(StoreUnreachable):
            log.flush()
    log({"event": "two"})
    log.flush()
    assert [event["event"] for event in read_events(store, "test-00001")] == ["one", "two"]


def test_a_segment_of_another_process_is_stepped_over(store):
    logs = [StoreEvents(store, "test-00001") for _ in range(2)]
    for n, log in enumerate(logs):
        log({"event": str(n)})
        log.flush()
    assert [event["event"] for event in read_events(store, "test-00001")] == ["0", "1"]


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


def test_the_last_event_of_a_run_is_written_at_once_and_hides_no_error_of_the_store(store, monkeypatch):
    log = StoreEvents(store, "test-00001")
    log({"event": "one"})
    monkeypatch.setattr(store, "create", Mock(side_effect=StoreUnreachable("away")))
    log({"event": "stopped"})  # nothing is raised: the run says why it ended
    with pytest.raises(StoreUnreachable):
        log.close()
    monkeypatch.undo()
    log({"event": "finished"})
    assert [event["event"] for event in read_events(store, "test-00001")] == ["one", "stopped", "finished"]


def test_a_listener_that_fails_is_named_once_and_the_others_hear_everything():
    def stumble(event):
        raise KeyError(event["event"])

    heard: list[dict[str, object]] = []
    log = EventLog(stumble, heard.append)
    log.emit("one")
    log.emit("two")
    assert [event["event"] for event in heard] == ["error", "one", "two"]
    assert "stumble" in heard[0]["subject"] and heard[0]["message"] == "does not hear all events: KeyError: 'one'"


def test_a_store_that_is_away_still_ends_the_run():
    log = EventLog(Mock(side_effect=StoreUnreachable("away")))
    with pytest.raises(StoreUnreachable):
        log.emit("one")
