"""What begins a night, one at a time, and what follows its run: what changed since the last night, how results moved, and what is old enough to go."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.changes import Changes, changes_of, load_changes, run_before, save_changes
from cluster.drift import Drift, compare_runs, save_drift
from cluster.explore.pages import Written, renew_pages
from cluster.gc import Policy, Sweep, sweep
from cluster.lease import PACE, Lease, Pace, find_term, take
from cluster.runs import finished_runs, load_state, runs_before, split_run
from cluster.stores.base import Store
from schemas import layout
from schemas.errors import KeyMissing, LeaseHeld


def lease_name(pipeline: str) -> str:
    """Of one night's work at a time, per pipeline."""
    return f"nightly-{pipeline}"


class Held(NamedTuple):
    """Another night of the pipeline is at work."""

    said: str
    times: int
    """How many starts in a row have found that very night at work, this one included."""

    @property
    def lines(self) -> tuple[str, ...]:
        """What people are told."""
        if self.times == 1:
            return (self.said,)
        return (
            self.said,
            f"{self.times} starts in a row have found it at work: it is slow or hangs; `miclip status` shows how far it is, "
            "and if nothing moves, end that process and start the night again",
        )


def begin(store: Store, pipeline: str, pace: Pace = PACE) -> Lease | Held:
    """Take the lease of a night, or count one more start that found it held, beside the term that holds it."""
    name = lease_name(pipeline)
    try:
        return take(store, name, pace)
    except LeaseHeld as held:
        return Held(str(held), _count_start(store, name))


def _count_start(store: Store, name: str) -> int:
    term = find_term(store, name)
    if term is None:  # it has been removed since
        return 1
    key = layout.lease_key(name, term.number, "met")
    try:
        times = int(json.loads(store.get(key))["times"]) + 1
    except KeyMissing:
        times = 1
    store.replace(key, json.dumps({"times": times}).encode())
    return times


@dataclass
class Evening:
    """What was found out and done after a run; each part is tried whatever became of the others."""

    changes: Changes | None = None
    drift: Drift | None = None
    pages: Written | None = None
    swept: Sweep | None = None
    problems: list[str] = field(default_factory=list)


def last_night(store: Store, run: str) -> str | None:
    """The newest run before this one that a night ended with, else the newest finished one.

    A night that was killed behind its run is not the last: what changed with it is still to be told.
    """
    earlier = finished_runs(store, runs_before(store, run))
    told = (tables.run for tables in earlier if load_changes(store, tables.run) is not None)
    return next(told, None) or run_before(store, run)


def conclude(store: Store, run: str, keep_runs: int | None, pace: Pace = PACE, pages: str | None = None) -> Evening:
    """Compare a finished run with the last night's, write that beside it, renew pages, and drop old runs of its pipeline.

    keep_runs: how many stay; None drops nothing. pages: where the explorer's are; None renews none.
    """
    evening = Evening()
    before = last_night(store, run)
    try:
        evening.changes = changes_of(store, run, before)
        if before is not None:
            evening.drift = compare_runs(store, load_state(store, before), load_state(store, run))
            save_drift(store, run, before, evening.drift)
        save_changes(store, evening.changes)
    except Exception as error:  # whatever it is, the run itself went well, and people are to be told of both
        evening.problems.append(f"not compared with {before}: {type(error).__name__}: {error}")
    if pages is not None:
        try:
            evening.pages = renew_pages(store, pages)
        except Exception as error:
            evening.problems.append(f"pages were not renewed: {type(error).__name__}: {error}")
    if keep_runs is not None:
        try:
            evening.swept = sweep(store, Policy(keep_runs, split_run(run)[0]), pace)
        except LeaseHeld as error:  # the next night does it
            evening.problems.append(str(error))
        except Exception as error:
            evening.problems.append(f"old runs were not all dropped: {type(error).__name__}: {error}")
    return evening
