"""What begins a night, one at a time, and what follows its run: what changed since the last night, how results moved, and what is old enough to go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.amounts import some
from cluster.catalog import HEAL, Scope, Verdict, check_sizes, open_catalog
from cluster.changes import Changes, changes_of, load_changes, run_before, save_changes
from cluster.drift import compare_runs
from cluster.drift_table import Drift, save_drift
from cluster.explore.pages import Written, renew_pages
from cluster.gc import Sweep, sweep
from cluster.lease import PACE, Lease, Pace, find_term, take
from cluster.retention import Policy
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
    damaged: tuple[Verdict, ...] = ()
    """Of what the run stands for: objects that are gone or have another size."""
    swept: Sweep | None = None
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def trying(self, otherwise: str) -> Iterator[None]:
        """Whatever goes wrong is a problem to be told: the run itself went well, and the other parts are still to be done."""
        try:
            yield
        except Exception as error:
            self.problems.append(f"{otherwise}: {type(error).__name__}: {error}")


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
    with evening.trying(f"not compared with {before}"):
        evening.changes = changes_of(store, run, before)
        if before is not None:
            evening.drift = compare_runs(store, load_state(store, before), load_state(store, run))
            save_drift(store, run, before, evening.drift, pace)
        save_changes(store, evening.changes)
    if pages is not None:
        with evening.trying("pages were not renewed"):
            evening.pages = renew_pages(store, pages)
    with evening.trying("not looked at whether all that is published is there"):
        evening.damaged = tuple(found for found in check_sizes(open_catalog(store, Scope(run=run))) if found.problem)
    if evening.damaged:
        evening.problems.append(_damage(store, run, evening.damaged))
    if keep_runs is not None:  # where another sweep is going on, the next night does it
        with evening.trying("old runs were not all dropped"):
            evening.swept = sweep(store, Policy(keep_runs, split_run(run)[0]), pace)
    return evening


def _damage(store: Store, run: str, damaged: Sequence[Verdict]) -> str:
    first = damaged[0]
    more = f", and {some(len(damaged) - 1, 'more object')}" if len(damaged) > 1 else ""
    return (
        f"published results are damaged: {first.key} of stage {first.stage}: {first.problem}{more}; "
        f"`miclip verify --run {run} --store {store.uri}` names all. To heal: {HEAL}"
    )
