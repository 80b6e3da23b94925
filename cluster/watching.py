"""Runs seen from afar: whether a driver still lives, what it tells, and a request that it ends; all through the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from cluster.alive import ALIVE_SECONDS, Pulse, last_sign, lost_after
from cluster.events import ENDINGS, Event, read_segments
from cluster.executor import StopFlag
from cluster.lease import Pace, make_pace
from cluster.runs import RunState, find_state, is_cancelled
from cluster.stores.base import Store, prefetch
from schemas.errors import Cancelled, MiclipError

LOST_SECONDS = 300.0
"""What `status` takes for lost by the clocks of two machines: far more than the 20 seconds between two signs of life."""
LAST_WORDS_SECONDS = 20.0
"""How long to wait for the last events of a run whose state says that it has ended."""
CANCEL_SECONDS = 3.0
"""Seconds between two looks of a driver at whether it was cancelled."""


def seen_status(store: Store, state: RunState) -> str:
    """The status as it was written, or LOST where the driver that wrote RUNNING seems not to live any more.

    A guess for people who look once, and wrong by as much as the clocks of two machines differ: nothing is decided by it.
    """
    if state.status != "RUNNING":
        return state.status
    sign = last_sign(store, state.run)
    return "LOST" if sign is None or time.time() - sign > LOST_SECONDS else "RUNNING"


def seconds_taken(store: Store, state: RunState) -> float:
    """Seconds that a run took, or has taken until its driver last said that it lives; both by the driver's own clock."""
    if state.status != "RUNNING" or state.began is None or (sign := last_sign(store, state.run)) is None:
        return state.seconds
    return max(state.seconds, round(sign - state.began, 1))


def watch_pace(patience: float | None = None) -> Pace:
    """How often we look, and how long a driver may show no new sign of life before it is lost; as `make_pace` but closer,
    and by `lost_after`.
    """
    pace = make_pace(patience)
    return pace._replace(beat=1.0, patience=lost_after(pace.patience))


def follow_events(
    store: Store, run: str, pace: Pace | None = None, silent: Callable[[float], object] = lambda seconds: None
) -> Iterator[Event]:
    """The events of a run from its first to its last, as they are written; ends when the run has, or its driver is lost.

    pace: `watch_pace()` if left out. silent: told from time to time for how many seconds the driver has shown no sign of life, where signs are overdue.
    """
    pace = pace or watch_pace()
    shown = 0
    ended_at: float | None = None
    pulse = Pulse(store, run, pace.clock)
    told = ALIVE_SECONDS
    while True:
        state = find_state(store, run)
        silence = pulse.look()
        for segment in read_segments(store, run, shown):
            shown += 1
            for event in segment:
                yield event
                if event["event"] in ENDINGS:
                    return
        if state is not None and state.status != "RUNNING":  # the state is written before the last events are
            ended_at = ended_at or pace.clock()
            if pace.clock() - ended_at > LAST_WORDS_SECONDS:
                return
        elif silence >= pace.patience:
            return
        elif silence < ALIVE_SECONDS:
            told = ALIVE_SECONDS
        elif silence >= told + ALIVE_SECONDS:
            told = silence
            silent(silence)
        pace.sleep(pace.beat)


def find_living(store: Store, runs: Sequence[str], pace: Pace) -> list[str]:
    """Of runs that have not said that they ended, those whose driver shows a new sign of life while we wait for one."""
    pulses = {run: Pulse(store, run, pace.clock) for run in runs}
    begun = pace.clock()
    while True:
        for _ in prefetch(lambda pulse: pulse.look(), pulses.values()):
            pass
        living = [run for run, pulse in pulses.items() if pulse.beats]
        if len(living) == len(runs) or pace.clock() - begun >= pace.patience:
            return living
        pace.sleep(pace.beat)


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
