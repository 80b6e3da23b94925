"""Signs of life: numbered beats that go on while the store falters, and silence that is counted by who looks."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from cluster import alive
from cluster.alive import Heart, Pulse, last_sign, read_sign
from cluster.events import StoreEvents
from cluster.stores.base import Store, make_store
from schemas.errors import StoreUnreachable
from schemas.layout import alive_key
from tests.paces import Time

RUN = "test-00001"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path))


def test_a_driver_says_that_it_lives_as_long_as_its_events_are_kept(store: Store) -> None:
    assert last_sign(store, RUN) is None and read_sign(store, alive_key(RUN)) == b""
    log = StoreEvents(store, RUN)
    log.start()
    log.close()
    sign = last_sign(store, RUN)
    assert sign is not None and abs(time.time() - sign) < 60
    assert store.list("") == [alive_key(RUN)]


def test_beats_are_numbered_so_that_a_clock_that_stands_still_makes_no_two_alike(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alive.time, "time", lambda: 7.0)
    heart = Heart(store, RUN)
    signs = []
    for _ in range(3):
        heart.beat()
        signs.append(read_sign(store, alive_key(RUN)))
    assert [json.loads(sign) for sign in signs] == [{"time": 7.0, "beat": n} for n in (1, 2, 3)]


def test_a_store_that_is_away_does_not_end_the_signs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, often = [], threading.Event()

    def away(key: str, data: bytes) -> None:
        tried.append(key)
        if len(tried) == 3:
            often.set()
        raise StoreUnreachable("away")

    monkeypatch.setattr(alive, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(store, "replace", away)
    heart = Heart(store, RUN)
    heart.start()
    assert often.wait(60)
    heart.stop()


@pytest.mark.parametrize("driver_clock", [0.0, 4e9])
def test_silence_is_counted_by_who_looks_whatever_the_clock_of_the_driver_says(
    store: Store, driver_clock: float
) -> None:
    time = Time(begin=1000.0)
    store.replace(alive_key(RUN), json.dumps({"time": driver_clock}).encode())  # as drivers wrote that counted no beats
    pulse = Pulse(store, RUN, lambda: time.now)
    assert (pulse.look(), pulse.beats) == (0.0, 0)
    time.sleep(50)
    assert (pulse.look(), pulse.beats) == (50.0, 0)
    store.replace(alive_key(RUN), json.dumps({"time": driver_clock - 3600}).encode())  # its clock was set back
    assert (pulse.look(), pulse.beats) == (0.0, 1)
    time.sleep(70)
    assert (pulse.look(), pulse.beats) == (70.0, 1)
