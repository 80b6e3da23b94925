"""Leases in the store: a numbered term belongs to whoever created it, as long as its beats go on; no clock is trusted."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from cluster.stores.base import Store
from schemas import layout
from schemas.errors import KeyMissing, LeaseHeld, LeaseLost, MiclipError, Unreachable


class Pace(NamedTuple):
    """How often a holder beats, how long others see no beat before they take the lease, and what tells them so.

    Only lengths of time of one machine are compared, never moments of two.
    """

    beat: float = 5.0
    patience: float = 90.0
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic


PACE = Pace()


class Term(NamedTuple):
    """The newest term of a lease, as somebody else sees it."""

    number: int
    who: str
    ended: bool


def find_term(store: Store, name: str) -> Term | None:
    """The newest term of a lease, or None if nobody ever held it."""
    names = [key.rsplit("/", 1)[1].split(".") for key in store.list(layout.lease_prefix(name))]
    held = [int(number) for number, what, _ in names if what == "held"]
    if not held:
        return None
    newest = max(held)
    ended = any(int(number) == newest and what == "end" for number, what, _ in names)
    return Term(newest, _read_who(store, name, newest), ended)


def _read_who(store: Store, name: str, term: int) -> str:
    try:
        return str(json.loads(store.get(layout.lease_key(name, term, "held")))["who"])
    except (KeyMissing, ValueError, KeyError):
        return "somebody"


def still_lives(store: Store, name: str, term: Term, pace: Pace = PACE) -> bool:
    """Whether the holder of a term shows life before our patience ends; True too if it is not the newest any more.

    Returns False as soon as the term has ended.
    """
    before, begun = _read_beat(store, name, term.number), pace.clock()
    while True:
        pace.sleep(min(pace.beat, pace.patience / 8))
        now = find_term(store, name)
        if now is None or now.number != term.number or _read_beat(store, name, term.number) != before:
            return True
        if now.ended or pace.clock() - begun >= pace.patience:
            return False


def _read_beat(store: Store, name: str, term: int) -> bytes:
    try:
        return store.get(layout.lease_key(name, term, "beat"))
    except KeyMissing:
        return b""


class Lease:
    """A lease that this process holds; beats in a thread of its own until it is released.

    Work may be saved by it; nothing is right only because of it, except that `gc` looks at it before each removal.
    """

    def __init__(self, store: Store, name: str, term: int, pace: Pace) -> None:
        self.term = term
        self._store, self._name, self._pace = store, name, pace
        self._lost = ""
        self._beats = 0
        self._beaten = pace.clock()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name=f"miclip-lease-{name}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def check(self) -> None:
        """Make sure that it is still held.

        Raises:
            LeaseLost: somebody took it, or may soon because no beat could be written for a quarter of their patience: the
                rest is for what is done next, which a slow store may draw out.
        """
        if self._is_late():
            self.beat()
        if self._lost:
            raise LeaseLost(f"lease {self._name}, term {self.term}: {self._lost}; the same command goes on from here")

    def _is_late(self) -> bool:
        return self._pace.clock() - self._beaten > self._pace.patience / 4

    def beat(self) -> None:
        """Show life once; what goes wrong is said by the next `check`."""
        with self._lock:
            self._beat()

    def _beat(self) -> None:
        try:
            self._beats += 1
            beat = json.dumps({"beat": self._beats}).encode()
            self._store.replace(layout.lease_key(self._name, self.term, "beat"), beat)
            newest = find_term(self._store, self._name)
            if newest is None or newest.number != self.term:
                self._lost = f"taken over by {newest.who if newest else 'nobody, its files are gone'}"
            elif (late := self._pace.clock() - self._beaten) > self._pace.patience:
                self._lost = f"no beat was written for {late:.0f} s, longer than others wait"
            else:
                self._beaten = self._pace.clock()
        except MiclipError as error:
            if self._is_late():
                self._lost = f"no beat could be written ({error})"

    def release(self) -> None:
        """End the term, so that nobody has to wait; if the store is away others find out by themselves."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(Unreachable):
            self._store.create(layout.lease_key(self._name, self.term, "end"), b"{}")

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._pace.beat):
            self.beat()


def take(store: Store, name: str, pace: Pace = PACE) -> Lease:
    """Take a lease: at once if its last term has ended, else after its holder has shown no life for our patience.

    Raises:
        LeaseHeld: its holder lives, or another taker was first.
    """
    term = find_term(store, name)
    if term is not None and not term.ended and still_lives(store, name, term, pace):
        raise LeaseHeld(f"{name}: {term.who} holds the lease (term {term.number}) and is at work; nothing was done")
    number = term.number + 1 if term else 1
    who = json.dumps({"who": f"{socket.gethostname()} process {os.getpid()}"}).encode()
    if not store.create(layout.lease_key(name, number, "held"), who):
        raise LeaseHeld(f"{name}: {_read_who(store, name, number)} has just taken the lease; nothing was done")
    return Lease(store, name, number, pace)
