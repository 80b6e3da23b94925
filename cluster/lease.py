"""Leases in the store: a numbered term belongs to whoever created it, as long as its beats go on; no clock is trusted."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from cluster.stores.base import Store, create_unique, get_budget
from schemas import layout
from schemas.errors import KeyMissing, LeaseHeld, LeaseLost, MiclipError, Unreachable, UsageError

PATIENCE = 90.0
_FILE = re.compile(r"leases/([^/]+)/(\d+)\.(held|beat|met|end)\.json")
BUDGETS = 1.5
"""Patience is at least so many times what one request may take: a holder does things up to a quarter of it after its beat."""


def _count_suspended() -> float:
    """Seconds that also go on while this machine is suspended, where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Pace(NamedTuple):
    """How often a holder beats, how long others see no beat before they take the lease, and what tells them so.

    Only lengths of time of one machine are compared, never moments of two.
    """

    beat: float = 5.0
    patience: float = PATIENCE
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    """Of who waits: stands still while this machine is suspended, for then the holder may be, too."""
    age: Callable[[], float] = _count_suspended
    """Of who holds: others went on waiting while this machine was suspended."""


PACE = Pace()


def make_pace(patience: float | None = None) -> Pace:
    """The pace of who waits so many seconds; if left out 90, or as many as the budget of a slow store asks for.

    Raises:
        UsageError: a single request may take too large a part of that time.
    """
    budget = get_budget()
    if patience is None:
        return Pace(patience=max(PATIENCE, BUDGETS * budget))
    if patience < BUDGETS * budget:
        raise UsageError(
            f"--patience {patience:g}: expected at least {BUDGETS * budget:g} seconds, {BUDGETS:g} times the {budget:g} seconds "
            "for which one request to the store is tried again; wait longer, or lower MICLIP_STORE_BUDGET_S everywhere"
        )
    return Pace(patience=patience)


class Term(NamedTuple):
    """The newest term of a lease, as somebody else sees it."""

    number: int
    who: str
    ended: bool
    patience: float = 0.0
    """Seconds of silence that its holder counts on."""


def split_key(key: str) -> tuple[str, int, str] | None:
    """(lease, term, what it says of the term) of a key; None of what somebody else laid there."""
    match = _FILE.fullmatch(key)
    return (match[1], int(match[2]), match[3]) if match else None


def find_term(store: Store, name: str) -> Term | None:
    """The newest term of a lease, or None if nobody ever held it."""
    files = [file for file in map(split_key, store.list(layout.lease_prefix(name))) if file]
    held = [number for _, number, what in files if what == "held"]
    if not held:
        return None
    newest = max(held)
    ended = any(number == newest and what == "end" for _, number, what in files)
    who, patience = _read_holder(store, name, newest)
    return Term(newest, who, ended, patience)


def _read_holder(store: Store, name: str, term: int) -> tuple[str, float]:
    try:
        said = json.loads(store.get(layout.lease_key(name, term, "held")))
        return str(said["who"]), float(said["patience"])
    except (KeyMissing, ValueError, KeyError):
        return "somebody", 0.0


def still_lives(
    store: Store, name: str, term: Term, pace: Pace = PACE, check: Callable[[], None] = lambda: None
) -> bool:
    """Whether the holder of a term shows life before our patience and the one it counts on have passed; True too if it is
    not the newest any more, and False as soon as the term has ended.

    check: called before each look; what it raises ends the wait.
    """
    patience = max(pace.patience, term.patience)
    before, begun = _read_beat(store, name, term.number), pace.clock()
    while True:
        check()
        pace.sleep(min(pace.beat, patience / 8))
        now = find_term(store, name)
        if now is None or now.number != term.number or _read_beat(store, name, term.number) != before:
            return True
        if now.ended or pace.clock() - begun >= patience:
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

    def __init__(self, store: Store, name: str, term: int, pace: Pace, begun: float) -> None:
        self.term = term
        self._store, self._name, self._pace = store, name, pace
        self._lost = ""
        self._beats = 0
        self._beaten = begun
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
        lost = self._lost or ("the store takes too long over a beat" if self._is_late() else "")
        if lost:
            raise LeaseLost(f"lease {self._name}, term {self.term}: {lost}; the same command goes on from here")

    def _is_late(self) -> bool:
        return self._pace.age() - self._beaten > self._pace.patience / 4

    def beat(self) -> None:
        """Show life once; what goes wrong is said by the next `check`."""
        with self._lock:
            self._beat()

    def _beat(self) -> None:
        sent = self._pace.age()  # others may have seen the beat as soon as it was sent, however late we hear of it
        try:
            self._beats += 1
            beat = json.dumps({"beat": self._beats}).encode()
            self._store.replace(layout.lease_key(self._name, self.term, "beat"), beat)
            newest = find_term(self._store, self._name)
            if newest is None or newest.number != self.term:
                self._lost = f"taken over by {newest.who if newest else 'nobody, its files are gone'}"
            elif (late := self._pace.age() - self._beaten) > self._pace.patience:
                self._lost = f"no beat was written for {late:.0f} s, longer than others wait"
            else:
                self._beaten = sent
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
    return follow(store, name, term, pace)


def follow(store: Store, name: str, term: Term | None, pace: Pace = PACE) -> Lease:
    """Take the term after this one, which has ended or whose holder is dead; None if nobody ever held the lease.

    Raises:
        LeaseHeld: another taker was first.
    """
    number = term.number + 1 if term else 1
    begun = pace.age()
    who = {"who": f"{socket.gethostname()} process {os.getpid()}", "patience": pace.patience, "taker": uuid.uuid4().hex}
    created = create_unique(store, layout.lease_key(name, number, "held"), json.dumps(who).encode())
    newest = find_term(store, name)  # `gc` removes old terms: this number may have been there before, and later ones
    if not created or newest is None or newest.number != number:
        other = newest.who if newest else "somebody"
        raise LeaseHeld(f"{name}: {other} has just taken the lease; nothing was done")
    return Lease(store, name, number, pace, begun)
