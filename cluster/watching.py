"""Runs seen from afar: whether a driver still lives, what it tells, and a request that it ends; all through the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from cluster.alive import last_sign
from cluster.events import Event, read_segments
from cluster.executor import StopFlag
from cluster.runs import RunState, find_state, is_cancelled
from cluster.stores.base import Store
from schemas.errors import Cancelled, MiclipError

LOST_SECONDS = 300.0
"""A driver says that it lives every 20 seconds; after this long without a word it was killed, or its machine is gone."""
LAST_WORDS_SECONDS = 20.0
"""How long to wait for the last events of a run whose state says that it has ended."""
CANCEL_SECONDS = 3.0
"""Seconds between two looks of a driver at whether it was cancelled."""
ENDINGS = ("finished", "stopped")
"""The last event of a run."""


def seen_status(store: Store, state: RunState) -> str:
    """The status as it was written, or LOST where the driver that wrote RUNNING does not live any more."""
    if state.status != "RUNNING":
        return state.status
    sign = last_sign(store, state.run)
    return "LOST" if sign is None or time.time() - sign > LOST_SECONDS else "RUNNING"


def seconds_taken(store: Store, state: RunState) -> float:
    """Seconds that a run took, or has taken until its driver last said that it lives; both by the driver's own clock."""
    if state.status != "RUNNING" or state.began is None or (sign := last_sign(store, state.run)) is None:
        return state.seconds
    return max(state.seconds, round(sign - state.began, 1))


def follow_events(store: Store, run: str, pause: float = 1.0) -> Iterator[Event]:
    """The events of a run from its first to its last, as they are written; ends when the run has, or its driver is lost.

    pause: seconds between two looks.
    """
    shown = 0
    ended_at: float | None = None
    while True:
        state = find_state(store, run)
        status = seen_status(store, state) if state else "RUNNING"
        for segment in read_segments(store, run, shown):
            shown += 1
            for event in segment:
                yield event
                if event["event"] in ENDINGS:
                    return
        if status == "LOST":
            return
        if status != "RUNNING":  # the state is written before the last events are
            ended_at = ended_at or time.monotonic()
            if time.monotonic() - ended_at > LAST_WORDS_SECONDS:
                return
        time.sleep(pause)


class CancelWatch:
    """Looks in the store, from a thread of the driver, whether somebody has cancelled its run; a context manager."""

    def __init__(self, store: Store, run: str, stop: StopFlag, pause: float = CANCEL_SECONDS) -> None:
        self._store, self._run, self._stop, self._pause = store, run, stop, pause
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="miclip-cancel", daemon=True)

    def __enter__(self) -> CancelWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(self._pause):
            try:
                if is_cancelled(self._store, self._run):
                    self._stop.stop("cancelled", Cancelled)
                    return
            except MiclipError:  # the run itself meets this store too and says what is wrong with it
                continue
