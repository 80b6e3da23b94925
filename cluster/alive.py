"""Signs of life of a driver: it writes numbered beats, and others count by their own stopwatch how long none is new."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

from cluster.stores.base import Store, get_budget
from schemas import layout
from schemas.errors import KeyMissing, MiclipError

ALIVE_SECONDS = 20.0
AGAIN_SECONDS = 2.0
"""After a beat that could not be written."""


def lost_after(patience: float) -> float:
    """Seconds without a new sign after which a driver counts as dead: the patience, but at least what two signs may lie
    apart where a slow store takes its whole budget over a beat.
    """
    return max(patience, ALIVE_SECONDS + get_budget())


class Heart:
    """Writes that a driver lives, from a thread of its own that nothing else of it can hold up."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self._beats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="miclip-alive", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """End; nothing more is written."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self) -> None:
        """Write one sign: its number, which is what counts, and the time of this machine, for people."""
        self._beats += 1
        sign = {"time": time.time(), "beat": self._beats}
        self._store.replace(layout.alive_key(self._run), json.dumps(sign).encode())

    def _keep_beating(self) -> None:
        while True:
            pause = ALIVE_SECONDS
            try:
                self.beat()
            except MiclipError:  # the run itself meets this store too and says what is wrong with it
                pause = AGAIN_SECONDS
            if self._ended.wait(pause):
                return


class Pulse:
    """How long a driver has shown no new sign of life, by our own stopwatch: clocks of two machines are never compared."""

    def __init__(self, store: Store, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.beats = 0
        """Signs that came since we look: a driver lives that shows one."""
        self._store, self._key, self._clock = store, layout.alive_key(run), clock
        self._since = clock()
        self._sign = read_sign(store, self._key)

    def look(self) -> float:
        """Seconds since its last sign came, as far as we have looked."""
        sign = read_sign(self._store, self._key)
        if sign != self._sign:
            self.beats += 1
            self._sign, self._since = sign, self._clock()
        return self._clock() - self._since


def read_sign(store: Store, key: str) -> bytes:
    """The newest sign of life under a key, whose bytes differ from all before; empty if there never was one."""
    try:
        return store.get(key)
    except KeyMissing:
        return b""


def last_sign(store: Store, run: str) -> float | None:
    """When a driver last said that it lives, in seconds since the epoch by *its* clock; None if it never did."""
    sign = read_sign(store, layout.alive_key(run))
    return float(json.loads(sign)["time"]) if sign else None
