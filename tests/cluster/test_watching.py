"""A run seen from elsewhere: its events up to the last, a driver that went away without a word, a request to end."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import pytest

from cluster.events import EventLog, StoreEvents
from cluster.executor import StopFlag
from cluster.runs import RunState, RunStatus, ask_to_cancel, find_state, new_run, save_state
from cluster.stores.base import Store, make_store
from cluster.watching import CancelWatch, find_living, follow_events, seen_status, watch_pace
from schemas.errors import Cancelled, Interrupted
from schemas.layout import alive_key
from tests.paces import Time, fast

BEATS = itertools.count()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path))


@pytest.fixture
def run(store: Store) -> str:
    name = new_run(store, "zoo", "")
    set_status(store, name, "RUNNING")
    return name


def set_status(store: Store, run: str, status: RunStatus) -> RunState:
    state = RunState(run=run, pipeline="zoo", number=1, status=status)
    save_state(store, state)
    return state


def write(store: Store, run: str, *names: str) -> None:
    """One segment with these events."""
    events = StoreEvents(store, run)
    for name in names:
        EventLog(events).emit(name)
    events.flush()


def live(store: Store, run: str, clock: float = 4e9) -> None:
    """A new sign of life, from a machine whose clock says `clock`."""
    store.replace(alive_key(run), json.dumps({"time": clock, "beat": next(BEATS)}).encode())


def test_events_are_followed_from_the_first_to_the_last_while_they_are_written(store: Store, run: str) -> None:
    write(store, run, "planned", "shard_done")
    seen = follow_events(store, run, fast())
    assert [next(seen)["event"] for _ in range(2)] == ["planned", "shard_done"]
    write(store, run, "published")
    assert next(seen)["event"] == "published"
    set_status(store, run, "DONE")
    write(store, run, "finished")  # after the state, as a driver does
    assert [event["event"] for event in seen] == ["finished"]


def test_last_words_that_come_after_the_state_are_waited_for(store: Store, run: str) -> None:
    set_status(store, run, "DONE")
    pace = Time(during=lambda: write(store, run, "finished")).pace()
    assert [event["event"] for event in follow_events(store, run, pace)] == ["finished"]


@pytest.mark.parametrize("status", ["INTERRUPTED", "STOPPED"])
def test_a_run_that_ended_long_ago_without_last_words_is_followed_to_where_it_ends(
    store: Store, run: str, status: RunStatus
) -> None:
    write(store, run, "planned")
    set_status(store, run, status)
    assert [event["event"] for event in follow_events(store, run, fast())] == ["planned"]


@pytest.mark.parametrize("clock", [0.0, 4e9])
def test_following_ends_where_the_driver_is_lost_and_says_before_how_long_it_waits(
    store: Store, run: str, clock: float
) -> None:
    live(store, run, clock)
    write(store, run, "planned")
    time, told = Time(), []
    seen = follow_events(store, run, time.pace()._replace(patience=95), told.append)
    assert [event["event"] for event in seen] == ["planned"]
    assert told == [40, 60, 80] and time.now == 95


@pytest.mark.parametrize("clock", [0.0, 4e9])
def test_a_driver_that_lives_is_followed_to_its_end_whatever_its_clock_says(
    store: Store, run: str, clock: float
) -> None:
    """For ten minutes, of which it is silent for up to 50 seconds."""

    def work() -> None:
        if time.now % 50 == 0:
            live(store, run, clock)
        if time.now == 600:
            set_status(store, run, "DONE")
            write(store, run, "finished")

    time, told = Time(during=work), []
    write(store, run, "planned")
    seen = follow_events(store, run, time.pace(), told.append)
    assert [event["event"] for event in seen] == ["planned", "finished"]
    assert set(told) == {40} and time.now == 600


def test_of_several_runs_that_never_said_that_they_ended_those_live_that_show_it(store: Store, run: str) -> None:
    ahead, dead = new_run(store, "zoo", ""), new_run(store, "zoo", "")
    live(store, dead)
    time = Time(during=lambda: [live(store, run, 0.0), live(store, ahead)])
    assert find_living(store, [run, ahead], time.pace()) == [run, ahead] and time.now == 5
    assert find_living(store, [run, ahead, dead], time.pace()) == [run, ahead] and time.now == 65


def test_a_driver_whose_beat_takes_the_whole_budget_of_a_slow_store_is_not_lost(
    store: Store, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "60")
    dead = new_run(store, "zoo", "")
    time = Time(during=lambda: live(store, run) if time.now == 79 else None)
    pace = watch_pace()._replace(sleep=time.sleep, clock=lambda: time.now)
    assert find_living(store, [run, dead], pace) == [run] and time.now == 90
    monkeypatch.setenv("MICLIP_STORE_BUDGET_S", "10")
    assert watch_pace(15).patience == 30  # a shorter one would take whoever lives for lost
    assert watch_pace(45).patience == 45


def test_a_run_without_a_recent_sign_of_life_is_lost_and_one_that_ended_is_what_it_says(store: Store, run: str) -> None:
    state = find_state(store, run)
    assert state is not None and seen_status(store, state) == "LOST"  # it never said anything
    live(store, run)
    assert seen_status(store, state) == "RUNNING"
    assert seen_status(store, set_status(store, run, "CANCELLED")) == "CANCELLED"
    assert find_state(store, new_run(store, "zoo", "")) is None  # its driver has only just begun


def test_a_driver_hears_that_it_is_cancelled_by_anybody_who_reaches_its_store(store: Store, run: str) -> None:
    stop, heard = StopFlag(), threading.Event()
    told: list[Interrupted] = []
    stop.listen(told.append)
    stop.listen(lambda _: heard.set())
    with CancelWatch(store, run, stop, pause=0.01):
        stop.check()
        assert ask_to_cancel(make_store(store.uri), run)
        assert heard.wait(60)
    assert [type(error) for error in told] == [Cancelled]
    with pytest.raises(Cancelled, match="cancelled"):
        stop.check()
    assert not ask_to_cancel(store, run)  # asked before


def test_a_driver_that_nobody_cancels_goes_on(store: Store, run: str) -> None:
    stop = StopFlag()
    with CancelWatch(store, run, stop, pause=0.001):
        pass
    stop.check()


def test_who_asks_first_says_why_a_run_is_stopped() -> None:
    stop, told = StopFlag(), []
    stop.listen(lambda error: told.append(str(error)))
    stop.stop("SIGTERM")
    stop.stop("cancelled", Cancelled)
    with pytest.raises(Interrupted, match="SIGTERM") as caught:
        stop.check()
    assert type(caught.value) is Interrupted and len(told) == 1
