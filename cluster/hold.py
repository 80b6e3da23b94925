"""What a run may read or make, written down before it looks what is there, so that `gc` leaves it alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable

from cluster.lease import PACE, Pace, find_term, still_lives, take
from cluster.stores.base import Store
from schemas import layout
from schemas.errors import KeyMissing, LeaseHeld
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

    def __init__(self, store: Store, run: str, pace: Pace = PACE) -> None:
        self._store, self._run, self._pace = store, run, pace
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
        self._held |= set(names)
        self._store.replace(layout.run_key(self._run, "holds.json"), json.dumps(sorted(self._held)).encode())
        self._wait(check)
        return True

    def _wait(self, check: Callable[[], None]) -> None:
        while (term := find_term(self._store, GC)) is not None and not term.ended:
            doomed = load_doomed(self._store, term.number)
            if doomed is not None and not doomed & self._held:
                return
            check()
            if not still_lives(self._store, GC, term, self._pace):
                self._end_dead_sweep()

    def _end_dead_sweep(self) -> None:
        """Take the lease of a sweep that nobody carries out any more, and give it back at once."""
        try:
            take(self._store, GC, self._pace).release()
        except LeaseHeld:  # somebody else did, or sweeps again
            return


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
