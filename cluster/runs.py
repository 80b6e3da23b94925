"""Runs in the store: a numbered name, the spec as it was given, a state for people, and which stages it stands for."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from cluster.stores.base import Store
from schemas import layout
from schemas.base import Frozen
from schemas.errors import KeyMissing, UnknownRun
from schemas.plans import load_json

_RUN = re.compile(r"runs/([^/]+)-(\d{5,})/spec\.yaml")
RunStatus = Literal["RUNNING", "DONE", "FAILED", "INTERRUPTED", "STOPPED"]


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


class RunState(Frozen):
    """`state.json`: replaced as the run goes; correctness never rests on it."""

    run: str
    pipeline: str
    number: int
    status: RunStatus
    limited: bool = False
    message: str = ""
    seconds: float = 0.0
    stages: tuple[StageState, ...] = ()


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


def new_run(store: Store, pipeline: str, spec_text: str) -> str:
    """Take the next number of this pipeline; two drivers at once get different ones."""
    numbers = [number for name, number in _all(store) if name == pipeline]
    number = max(numbers, default=0) + 1
    while not store.create(layout.run_key(f"{pipeline}-{number:05d}", "spec.yaml"), spec_text.encode()):
        number += 1
    return f"{pipeline}-{number:05d}"


def list_runs(store: Store, pipeline: str | None = None) -> list[str]:
    """Run ids, oldest first within each pipeline."""
    return [f"{name}-{n:05d}" for name, n in sorted(_all(store)) if pipeline in (None, name)]


def _all(store: Store) -> list[tuple[str, int]]:
    found = (_RUN.fullmatch(key) for key in store.list("runs"))  # what is not named like a run is somebody else's
    return [(match[1], int(match[2])) for match in found if match]


def save_state(store: Store, state: RunState) -> None:
    """Replace the state of a run."""
    store.replace(layout.run_key(state.run, "state.json"), state.model_dump_json(indent=1).encode())


def load_state(store: Store, run: str) -> RunState:
    """The state of a run.

    Raises:
        UnknownRun: there is no such run.
    """
    try:
        return load_json(RunState, store.get(layout.run_key(run, "state.json")))
    except KeyMissing:
        raise _unknown(store, run) from None


def load_spec(store: Store, run: str) -> str:
    """The spec of a run, as it was given.

    Raises:
        UnknownRun: there is no such run.
    """
    try:
        return store.get(layout.run_key(run, "spec.yaml")).decode()
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


def latest_runs(store: Store, pipeline: str | None = None) -> list[RunTables]:
    """The newest finished run of each pipeline (or of the named one); small trials are never among them.

    Raises:
        UnknownRun: a pipeline is named and has no run at all.
    """
    runs = list_runs(store, pipeline)
    if pipeline is not None and not runs:
        there = sorted({run.rpartition("-")[0] for run in list_runs(store)})
        raise UnknownRun(f"pipeline {pipeline!r} has no run in {store.uri}; there are {', '.join(there) or 'none yet'}")
    newest: dict[str, RunTables] = {}
    for run in reversed(runs):
        name = run.rpartition("-")[0]
        if name not in newest and (tables := load_tables(store, run)) is not None and not tables.limited:
            newest[name] = tables
    return list(newest.values())
