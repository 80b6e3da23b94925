"""Which runs of a store are kept: enough of different tables, and no year of equal nights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cluster.runs import RunState, RunTables, find_state, list_runs, load_tables, split_run
from cluster.stores.base import Store, prefetch
from schemas.errors import UnknownRun

KEEP_RUNS = 7


class Policy(NamedTuple):
    """Which runs are kept: of each pipeline (or of one alone) those of the newest different tables, and pinned ones."""

    keep_runs: int = KEEP_RUNS
    pipeline: str | None = None
    pinned: frozenset[str] = frozenset()


class RunFacts(NamedTuple):
    """One run as its files say."""

    run: str
    state: RunState | None
    tables: RunTables | None

    @property
    def pipeline(self) -> str:
        return split_run(self.run)[0]

    @property
    def number(self) -> int:
        return split_run(self.run)[1]

    @property
    def is_finished(self) -> bool:
        """Whether it has ended and stands for all that its spec asks; a small trial never does."""
        return self.tables is not None and not self.tables.limited

    @property
    def failed(self) -> int:
        """Stages that it should stand for and does not, once it has ended."""
        return self.tables.failed if self.tables else 0

    @property
    def stages(self) -> frozenset[str]:
        """What it stands for; of a run that has not ended, what it is about."""
        if self.tables is not None:
            return frozenset(self.tables.digests)
        return frozenset(stage.digest for stage in self.state.stages) if self.state else frozenset()

    @property
    def may_go_on(self) -> bool:
        """Whether its driver has not said that it has ended."""
        return self.tables is None and (self.state is None or self.state.status == "RUNNING")


def load_runs(store: Store) -> list[RunFacts]:
    """All runs of a store, oldest first within each pipeline."""

    def load(run: str) -> RunFacts:
        return RunFacts(run, find_state(store, run), load_tables(store, run))

    return [facts for _, facts in prefetch(load, list_runs(store))]


def choose(runs: Sequence[RunFacts], policy: Policy, store: str) -> set[str]:
    """The runs that stay whether or not they go on: by their number and tables, the newest without a failure, pinned ones.

    store: where they are, for messages.

    Raises:
        UnknownRun: a pinned run, or the pipeline, is not there.
    """
    _check_names(runs, policy, store)
    by_pipeline: dict[str, list[RunFacts]] = defaultdict(list)
    for run in runs:
        by_pipeline[run.pipeline].append(run)
    kept = set(policy.pinned)
    for pipeline, its in by_pipeline.items():
        if policy.pipeline not in (None, pipeline):
            kept |= {run.run for run in its}
            continue
        newest_first = sorted(its, key=lambda run: -run.number)
        whole = (r for r in newest_first if r.is_finished and not r.failed)
        kept |= {run.run for run in (*_newest_different(newest_first, policy.keep_runs), *list(whole)[:1])}
    return kept


def _newest_different(newest_first: Sequence[RunFacts], keep: int) -> Iterator[RunFacts]:
    """Of each of the newest different tables the newest run and the first; of what was tried or cut short the last few by
    number, or since all that finished, the same only once and no more than so many. By number, since of equal runs that
    have finished not all are there any more."""
    finished = [run for run in newest_first if run.is_finished]
    equal: dict[frozenset[str], list[RunFacts]] = defaultdict(list)
    for run in finished:
        equal[run.stages].append(run)
    for runs in list(equal.values())[:keep]:
        yield from (runs[0], runs[-1])
    since = finished[0].number - keep if finished else 0
    others: dict[frozenset[str], RunFacts] = {}
    for run in newest_first:
        if not run.is_finished and run.number > since:
            others.setdefault(run.stages, run)
    yield from list(others.values())[:keep]


def _check_names(runs: Sequence[RunFacts], policy: Policy, store: str) -> None:
    if unknown := policy.pinned - {run.run for run in runs}:
        raise UnknownRun(f"run {min(unknown)!r} is to be kept and is not in {store}")
    pipelines = {run.pipeline for run in runs}
    if policy.pipeline is not None and policy.pipeline not in pipelines:
        there = ", ".join(sorted(pipelines)) or "none yet"
        raise UnknownRun(f"pipeline {policy.pipeline!r} has no run in {store}; there are {there}")


def newest_numbers(runs: Iterable[RunFacts]) -> dict[str, int]:
    """The largest number of these runs, by pipeline."""
    newest: dict[str, int] = {}
    for run in runs:
        newest[run.pipeline] = max(newest.get(run.pipeline, 0), run.number)
    return newest
