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
from cluster.explore.pages import Written, check_place, renew_pages
from cluster.gc import Sweep, sweep
from cluster.lease import PACE, Lease, Pace, find_term, take
from cluster.retention import Policy
from cluster.runs import find_state, finished_runs, latest_runs, load_state, load_tables, runs_before, split_run
from cluster.stores.base import Store, ask_many, prefetch
from schemas import layout
from schemas.errors import DamagedPart, KeyMissing, LeaseHeld, UsageError
from schemas.pipeline_spec import PipelineSpec

EXPLORER = "explorer"
"""The kind of the stages that pages are made of."""


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


def check_pages(store: Store, pipeline: PipelineSpec, to: str) -> None:
    """Make sure, before hours of work, that pages may be written there and that there will be some.

    Raises:
        UsageError: the place cannot be used, or neither the spec nor a newest run of the store has units to show.
    """
    check_place(to)
    if any(stage.kind == EXPLORER for stage in pipeline.stages.values()):
        return
    states = prefetch(lambda tables: find_state(store, tables.run), latest_runs(store))
    if not any(stage.kind == EXPLORER for _, state in states if state for stage in state.published):
        raise UsageError(
            f"pages at {to}: neither the spec nor a newest run in {store.uri} has a stage of kind {EXPLORER}, so "
            f"there would be none; add one that reads your stages of features, or leave --pages out"
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
    with evening.trying(f"not told what changed since {before}"):
        evening.changes = changes_of(store, run, before)
    if before is not None:
        with evening.trying(f"not compared with {before}"):
            evening.drift = compare_runs(store, load_state(store, before), load_state(store, run))
            save_drift(store, run, before, evening.drift, pace)
    if evening.changes is not None:  # behind drift, whatever became of it: a night that is killed there is not the last
        with evening.trying("what changed was not kept"):
            save_changes(store, evening.changes)
    if pages is not None:
        with evening.trying("pages were not renewed"):
            evening.pages = renew_pages(store, pages)
    with evening.trying("not looked at whether all that is published is there"):
        evening.damaged = _find_damage(store, run)
    if evening.damaged:
        evening.problems.append(_damage(store, run, evening.damaged))
    if keep_runs is not None:  # where another sweep is going on, the next night does it
        with evening.trying("old runs were not all dropped"):
            evening.swept = sweep(store, Policy(keep_runs, split_run(run)[0]), pace)
    return evening


def _find_damage(store: Store, run: str) -> tuple[Verdict, ...]:
    """What is gone or has another size; where a `published.json` is gone that alone, for nobody knows what it named."""
    try:
        return tuple(found for found in check_sizes(open_catalog(store, Scope(run=run))) if found.problem)
    except DamagedPart:
        tables = load_tables(store, run)
        keys = {layout.published_key(stage): stage for stage in (tables.digests if tables else ())}
        return tuple(Verdict(keys[key], key, 0, "gone") for key, there in ask_many(store.exists, keys) if not there)


def _damage(store: Store, run: str, damaged: Sequence[Verdict]) -> str:
    first = damaged[0]
    more = f", and {some(len(damaged) - 1, 'more object')}" if len(damaged) > 1 else ""
    return (
        f"published results are damaged: {first.key} of stage {first.stage}: {first.problem}{more}; "
        f"`miclip verify --run {run} --store {store.uri}` names all. To heal: {HEAL}"
    )
