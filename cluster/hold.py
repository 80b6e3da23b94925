"""What a run may read or make, written down before it looks what is there, so that `gc` leaves it alone."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import NamedTuple

from cluster.lease import Pace, Term, find_term, follow, make_pace, still_lives
from cluster.stores.base import Store
from schemas import layout
from schemas.errors import KeyMissing, LeaseHeld, MiclipError
from schemas.plans import Plan

GC = "gc"
"""The lease that is held while stages are removed."""

_NAME = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{20}|[0-9a-f]{64})(?![0-9a-f])")


def names_in(text: str) -> set[str]:
    """Everything in a text that looks like the digest of a stage or the sha256 of a listing."""
    return set(_NAME.findall(text))


class Holds:
    """What one run holds on to. A name that is held is not removed until the run has ended and is no longer kept.

    Two writes and two reads decide who yields: a run writes its holds and then looks for a sweep; `gc` takes its lease
    and then reads all holds. At least one of them sees the other.
    """

    def __init__(self, store: Store, run: str, pace: Pace | None = None) -> None:
        self._store, self._key, self._pace = store, layout.run_key(run, "holds.json"), pace or make_pace()
        self._held: set[str] = set()

    def add(self, plans: Iterable[Plan], check: Callable[[], None] = lambda: None) -> bool:
        """Hold all that these plans name; waits while a sweep is about to remove some of it. Whether it is more than before.

        check: called while waiting; what it raises ends the wait.
        """
        return self.hold({n for plan in plans for n in (plan.digest, *names_in(plan.canonical_json()))}, check)

    def hold(self, names: Collection[str], check: Callable[[], None] = lambda: None) -> bool:
        """The same of names of stages."""
        if not set(names) - self._held:
            return False
        self._held = self._held | set(names)
        self._save()
        self._wait(check)
        return True

    def _save(self) -> None:
        self._store.replace(self._key, json.dumps(sorted(self._held)).encode())

    def _wait(self, check: Callable[[], None]) -> None:
        while (term := find_term(self._store, GC)) is not None and not term.ended:
            doomed = load_doomed(self._store, term.number)
            if doomed is not None and not doomed & self._held:
                return
            if not still_lives(self._store, GC, term, self._pace, check):
                self._end(term)

    def _end(self, sweep: Term) -> None:
        """Take the lease of a sweep that nobody carries out any more, and give it back at once."""
        if find_term(self._store, GC) != sweep:  # it has come to its end after all
            return
        with suppress(LeaseHeld):  # somebody else did, or sweeps again
            follow(self._store, GC, sweep, self._pace).release()


class Visit(Holds):
    """What work without a run holds on to, such as an inspection for a plan, while it goes on, which a number that grows
    shows; what it was about has its time after that.
    """

    def __init__(self, store: Store, pace: Pace | None = None) -> None:
        super().__init__(store, "visit", pace)
        self._key = layout.visit_key(uuid.uuid4().hex)
        self._beats = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="miclip-visit", daemon=True)

    def __enter__(self) -> Visit:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._beats:
            with suppress(MiclipError):  # then others find out by themselves
                self._save()

    def _save(self) -> None:
        with self._lock:
            self._beats += 1
            record = {"beat": self._beats, "names": sorted(self._held), "ended": self._ended.is_set()}
            self._store.replace(self._key, json.dumps(record).encode())

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._pace.beat):
            if self._beats:
                with suppress(MiclipError):  # the work itself meets this store too and says what is wrong with it
                    self._save()


class Visited(NamedTuple):
    """What a visit holds on to, or held until it ended."""

    names: frozenset[str]
    ended: bool


def load_visit(store: Store, key: str) -> Visited:
    """What is known of the visit of this key."""
    try:
        record = json.loads(store.get(key))
    except KeyMissing:
        return Visited(frozenset(), True)
    return Visited(frozenset(record["names"]), record["ended"])


def load_holds(store: Store, run: str) -> set[str]:
    """What a run holds on to; nothing if it never said."""
    try:
        return set(json.loads(store.get(layout.run_key(run, "holds.json"))))
    except KeyMissing:
        return set()


def load_doomed(store: Store, term: int) -> set[str] | None:
    """The stages and listings that the sweep of a term removes; None while it has not made up its mind."""
    try:
        return set(json.loads(store.get(layout.sweep_key(term)))["doomed"])
    except KeyMissing:
        return None
