"""Runs in the store: a numbered name, the spec as it was given, a state for people, and which stages it stands for."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal
from uuid import uuid4

from pydantic import Field

from cluster.stores.base import Store, create_unique, prefetch
from schemas import layout
from schemas.base import Frozen
from schemas.errors import Cancelled, Interrupted, KeyMissing, UnknownRun
from schemas.plans import load_json

_RUN = re.compile(r"runs/([^/]+)-(\d{5,})/spec\.yaml")
_SUBMISSION = re.compile(r"(.+)-[0-9a-f]{8}-a(\d+)")
_TAKEN = re.compile(r"\n# taken by [0-9a-f]{32}\n\Z")
"""Behind a spec in the store, so that two drivers of the same one never write the same bytes."""
RunStatus = Literal["RUNNING", "DONE", "FAILED", "INTERRUPTED", "CANCELLED", "STOPPED"]
_SEEN_RUNS = 100
"""A submission is looked for among so many newest runs of its pipeline."""


class StageState(Frozen):
    """Where one stage of a run stands."""

    digest: str
    cell: str
    kind: str
    subject: str
    output: str
    detail: str = ""
    state: Literal["cached", "published", "to do", "failed"]
    shards_done: int = 0
    shards: int = 0
    error: str = ""

    @property
    def is_published(self) -> bool:
        """Whether its tables are there, made by this run or (`cached`) before it."""
        return self.state in ("cached", "published")


class UnplannedCell(Frozen):
    """A cell of a run that has no stages: it cannot be planned, or not yet."""

    cell: str
    kind: str
    subject: str
    """Its model, or its pair of models; its name if it is about none."""
    state: Literal["to do", "failed"]
    error: str


class RunState(Frozen):
    """`state.json`: replaced as the run goes; correctness never rests on it."""

    run: str
    pipeline: str
    number: int
    status: RunStatus
    exit_code: int | None = None
    """What the command of the run returns; None while it runs."""
    limited: bool = False
    message: str = ""
    seconds: float = 0.0
    began: float | None = None
    """When it began, in seconds since the epoch by the driver's clock."""
    stages: tuple[StageState, ...] = ()
    unplanned: tuple[UnplannedCell, ...] = ()

    @property
    def parts(self) -> tuple[StageState | UnplannedCell, ...]:
        """All that the run is about: its stages, and the cells that have none."""
        return (*self.stages, *self.unplanned)

    @property
    def published(self) -> tuple[StageState, ...]:
        """The stages whose tables are there."""
        return tuple(stage for stage in self.stages if stage.is_published)


class RunTables(Frozen):
    """`tables.json`: the published stages that a run stands for, by cell."""

    run: str
    pipeline: str
    limited: bool = False
    failed: int = 0
    """Stages that it should stand for and does not."""
    stages: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @property
    def digests(self) -> tuple[str, ...]:
        """Every stage, without repeats."""
        return tuple(dict.fromkeys(d for digests in self.stages.values() for d in digests))


class RunOptions(Frozen):
    """`options.json`: where a run was told to work, so that a retry works there too; never part of a digest."""

    executor: Literal["ray", "serial"] = "ray"
    workers: int | None = None
    cpus: int | None = None
    gpus: int = 0
    address: str | None = None
    submission: str = ""
    """The id of the job of a Ray cluster whose driver this run has; empty for a run that a person started."""
    jobs: str = ""
    """The URL that it was submitted to, as the submitter reached it."""
    python: str = "python"
    """The interpreter of the cluster's nodes."""
    ship: bool = False
    """Whether the source of this package was sent along, in place of what the nodes have installed."""


def new_run(store: Store, pipeline: str, spec_text: str) -> str:
    """Take the next number of this pipeline; two drivers at once get different ones, also of one spec and if answers are lost."""
    numbers = [number for name, number in _all(store) if name == pipeline]
    number = max(numbers, default=0) + 1
    data = f"{spec_text}\n# taken by {uuid4().hex}\n".encode()
    while not create_unique(store, layout.run_key(f"{pipeline}-{number:05d}", "spec.yaml"), data):
        number += 1
    return f"{pipeline}-{number:05d}"


def list_runs(store: Store, pipeline: str | None = None) -> list[str]:
    """Run ids, oldest first within each pipeline."""
    return [f"{name}-{n:05d}" for name, n in sorted(_all(store)) if pipeline in (None, name)]


def split_run(run: str) -> tuple[str, int]:
    """(pipeline, number) of a run by its id."""
    pipeline, _, number = run.rpartition("-")
    return pipeline, int(number)


def by_pipeline(runs: Iterable[str]) -> dict[str, list[str]]:
    """Run ids under the names of their pipelines, in the order given."""
    found: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        found[split_run(run)[0]].append(run)
    return dict(found)


def runs_before(store: Store, run: str) -> list[str]:
    """The runs of the same pipeline that have smaller numbers, oldest first."""
    pipeline, number = split_run(run)
    return [name for name in list_runs(store, pipeline) if split_run(name)[1] < number]


def _all(store: Store) -> list[tuple[str, int]]:
    found = (_RUN.fullmatch(key) for key in store.list("runs"))  # what is not named like a run is somebody else's
    return [(match[1], int(match[2])) for match in found if match]


def save_state(store: Store, state: RunState) -> None:
    """Replace the state of a run."""
    store.replace(layout.run_key(state.run, "state.json"), state.model_dump_json(indent=1).encode())


class StateKeeper:
    """Writes `state.json` of one run; a stop is written at once by the thread that asks for it, not when work has ended.

    A machine that is taken back gives 3 seconds; ending workers can take longer, and so can a write that is under way.
    No thread waits for the write of another, so the store may take them in any order: who comes back from a write that
    was overtaken writes the newest state again, behind its own.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        """For the fields, never over a request."""
        self._last: RunState | None = None
        self._stop: Interrupted | None = None
        self.stop_saved: float | None = None
        """When a stop was in the store first, by `time.monotonic()`."""

    def save(self, state: RunState) -> None:
        """Replace the state; while a stop is under way a run is not said to be RUNNING again."""
        with self._lock:
            if state.status == "RUNNING" and self._stop is not None:
                state = stopped(state, self._stop)
            self._last = state
        self._write()

    def stop(self, error: Interrupted) -> None:
        """Say that the run was stopped, unless it has ended; a listener for `StopFlag`."""
        with self._lock:
            self._stop = error
            if self._last is None or self._last.status != "RUNNING":
                return
            self._last = stopped(self._last, error)
        self._write()

    def _write(self) -> None:
        """Put the newest state into the store, again where a newer one came meanwhile, which may be there already."""
        written: RunState | None = None
        while (state := self._last) is not None and state is not written:
            save_state(self._store, state)
            written = state
            with self._lock:
                if state.status != "RUNNING" and self._stop is not None and self.stop_saved is None:
                    self.stop_saved = time.monotonic()


def stopped(state: RunState, error: Interrupted) -> RunState:
    """The state of a run that ended by this error."""
    update = {"status": status_of(error), "message": str(error), "exit_code": get_exit_code(error)}
    return state.model_copy(update=update)


def status_of(error: BaseException) -> RunStatus:
    """What the run is called that ends by this error."""
    if isinstance(error, Cancelled):
        return "CANCELLED"
    return "INTERRUPTED" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "STOPPED"


def get_exit_code(error: BaseException) -> int:
    """What the command returns that ends by this error."""
    return getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)


def load_state(store: Store, run: str) -> RunState:
    """The state of a run.

    Raises:
        UnknownRun: there is no such run.
    """
    state = find_state(store, run)
    if state is None:
        raise _unknown(store, run)
    return state


def find_state(store: Store, run: str) -> RunState | None:
    """The state of a run; None where its driver has only just begun, or ended before it wrote one."""
    try:
        return load_json(RunState, store.get(layout.run_key(run, "state.json")))
    except KeyMissing:
        return None


def load_spec(store: Store, run: str) -> str:
    """The spec of a run, as it was given.

    Raises:
        UnknownRun: there is no such run.
    """
    try:
        return _TAKEN.sub("", store.get(layout.run_key(run, "spec.yaml")).decode())
    except KeyMissing:
        raise _unknown(store, run) from None


def save_options(store: Store, run: str, options: RunOptions) -> None:
    """Keep where a run was told to work."""
    store.replace(layout.run_key(run, "options.json"), options.canonical_json().encode())


def load_options(store: Store, run: str) -> RunOptions:
    """Where a run was told to work; the defaults if it does not say."""
    try:
        return load_json(RunOptions, store.get(layout.run_key(run, "options.json")))
    except KeyMissing:
        return RunOptions()


def resolve_run(store: Store, name: str) -> str:
    """The run of this name, or the newest run of the submission of this name.

    Raises:
        UnknownRun: there is neither; a submitted run is there once its driver has begun.
    """
    if store.exists(layout.run_key(name, "spec.yaml")):
        return name
    for run, options in submitted_runs(store, name.rpartition("-a")[0]):
        if options.submission == name:
            return run
    raise _unknown(store, name)


def submitted_runs(store: Store, prefix: str) -> Iterator[tuple[str, RunOptions]]:
    """Runs whose submission is `<prefix>-a<attempt>`, newest first."""
    if (match := _SUBMISSION.fullmatch(f"{prefix}-a1")) is None:
        return
    newest = list_runs(store, match[1])[: -_SEEN_RUNS - 1 : -1]
    for run, options in prefetch(lambda run: load_options(store, run), newest):
        if options.submission.rpartition("-a")[0] == prefix:
            yield run, options


def ask_to_cancel(store: Store, run: str) -> bool:
    """Ask the driver of a run, wherever it is, to end it; False if that was asked before."""
    asked = {"time": time.time(), "by": uuid4().hex}
    return create_unique(store, layout.run_key(run, "cancel.json"), json.dumps(asked).encode())


def is_cancelled(store: Store, run: str) -> bool:
    """Whether somebody asked for the end of this run."""
    return store.exists(layout.run_key(run, "cancel.json"))


def _unknown(store: Store, run: str) -> UnknownRun:
    runs = list_runs(store)
    return UnknownRun(f"run {run!r} is not in {store.uri}; there are {', '.join(runs[-5:]) or 'none yet'}")


def save_tables(store: Store, tables: RunTables) -> None:
    """Write what the run stands for, once, when it has finished."""
    store.create(layout.run_key(tables.run, "tables.json"), tables.model_dump_json(indent=1).encode())


def load_tables(store: Store, run: str) -> RunTables | None:
    """What a finished run stands for, or None."""
    try:
        return load_json(RunTables, store.get(layout.run_key(run, "tables.json")))
    except KeyMissing:
        return None


def finished_runs(store: Store, runs: Sequence[str]) -> Iterator[RunTables]:
    """What each of these runs stands for that has finished, the last given first; small trials left out."""
    for run in reversed(runs):
        tables = load_tables(store, run)
        if tables is not None and not tables.limited:
            yield tables


def latest_runs(store: Store, pipeline: str | None = None) -> list[RunTables]:
    """The newest finished run of each pipeline (or of the named one); small trials are never among them.

    Raises:
        UnknownRun: a pipeline is named and has no run at all.
    """
    runs = list_runs(store, pipeline)
    if pipeline is not None and not runs:
        there = sorted(by_pipeline(list_runs(store)))
        raise UnknownRun(f"pipeline {pipeline!r} has no run in {store.uri}; there are {', '.join(there) or 'none yet'}")
    newest = (next(finished_runs(store, its), None) for its in by_pipeline(runs).values())
    return [tables for tables in newest if tables is not None]
