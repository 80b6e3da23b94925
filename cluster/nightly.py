"""What follows a night's run: what changed since the last night, how results moved, and what is old enough to go."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.changes import Changes, changes_of, load_changes, run_before, save_changes
from cluster.drift import Drift, compare_runs, save_drift
from cluster.gc import Policy, Sweep, sweep
from cluster.lease import PACE, Pace
from cluster.runs import finished_runs, load_state, runs_before, split_run
from cluster.stores.base import Store
from schemas.errors import LeaseHeld


def lease_name(pipeline: str) -> str:
    """Of one night's work at a time, per pipeline."""
    return f"nightly-{pipeline}"


@dataclass
class Evening:
    """What was found out and done after a run; each part is tried whatever became of the others."""

    changes: Changes | None = None
    drift: Drift | None = None
    swept: Sweep | None = None
    problems: list[str] = field(default_factory=list)


def last_night(store: Store, run: str) -> str | None:
    """The newest run before this one that a night ended with, else the newest finished one.

    A night that was killed behind its run is not the last: what changed with it is still to be told.
    """
    earlier = finished_runs(store, runs_before(store, run))
    told = (tables.run for tables in earlier if load_changes(store, tables.run) is not None)
    return next(told, None) or run_before(store, run)


def conclude(store: Store, run: str, keep_runs: int | None, pace: Pace = PACE) -> Evening:
    """Compare a finished run with the last night's, write that beside it, and drop old runs of its pipeline.

    keep_runs: how many stay; None drops nothing.
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
    if keep_runs is not None:
        try:
            evening.swept = sweep(store, Policy(keep_runs, split_run(run)[0]), pace)
        except LeaseHeld as error:  # the next night does it
            evening.problems.append(str(error))
        except Exception as error:
            evening.problems.append(f"old runs were not all dropped: {type(error).__name__}: {error}")
    return evening
