"""Figures of runs for a monitoring system: their names, how they come out of events and states, and the text format."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from cluster.alive import last_sign
from cluster.events import Event, read_segments
from cluster.runs import RunState, RunStatus, by_pipeline, find_state, list_runs, split_run
from cluster.stores.base import Store
from cluster.watching import seconds_taken
from schemas.errors import MiclipError


class Metric(NamedTuple):
    """One figure: its name without the `_total` of counters, what it says, and what tells its values apart."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def exposed(self) -> str:
        """The name that a monitoring system sees."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


_WORK = ("pipeline", "kind")
SHARDS = Metric("miclip_shards", "counter", "Shards of the newest run that ended, by how", (*_WORK, "state"))
RETRIES = Metric("miclip_retries", "counter", "Tries of the newest run that ended badly and were repeated", _WORK)
ITEMS = Metric(
    "miclip_items", "counter", "Images, or what else its shards count, that the newest run is done with", _WORK
)
ROWS = Metric("miclip_rows", "counter", "Rows that shards of the newest run wrote", _WORK)
SECONDS = Metric(
    "miclip_shard_seconds", "counter", "Seconds that workers of the newest run spent, by part", (*_WORK, "part")
)
PUBLISHED = Metric("miclip_published_bytes", "counter", "Bytes of tables that the newest run published", _WORK)
BAD_INPUTS = Metric("miclip_bad_inputs", "counter", "Images that stages of the newest run set aside", _WORK)
DAMAGED = Metric("miclip_damaged_stages", "counter", "Stages not published because a stored part differs", _WORK)
COUNTERS = (SHARDS, RETRIES, ITEMS, ROWS, SECONDS, PUBLISHED, BAD_INPUTS, DAMAGED)
"""What events of work add up to: in the driver through Ray, and from the events that the store keeps."""

CACHED = Metric("miclip_cached_stages", "counter", "Stages that the newest run found published", _WORK)
NUMBER = Metric("miclip_run_number", "gauge", "Number of the newest run", ("pipeline",))
STATUS = Metric(
    "miclip_run_status", "gauge", "1 for the status of the newest run, 0 for others", ("pipeline", "status")
)
RUN_SECONDS = Metric("miclip_run_seconds", "gauge", "How long the newest run took, or has taken so far", ("pipeline",))
STAGES = Metric(
    "miclip_stages",
    "gauge",
    "Stages, and cells without any, of the newest run, by where they stand",
    ("pipeline", "state"),
)
SIGN = Metric(
    "miclip_run_sign_of_life_timestamp_seconds", "gauge", "When the newest run's driver last lived", ("pipeline",)
)
SUCCESS = Metric(
    "miclip_last_success_timestamp_seconds", "gauge", "When the newest run that is DONE ended", ("pipeline",)
)
UP = Metric("miclip_store_up", "gauge", "1 if the store could be read just now")
METRICS = (*COUNTERS, CACHED, NUMBER, STATUS, RUN_SECONDS, STAGES, SIGN, SUCCESS, UP)

_MAY_CHANGE = ("RUNNING", "INTERRUPTED")
"""The latter becomes CANCELLED where somebody asks for that too late."""
MOST_RUNS = 100
"""So far back the newest success is looked for."""


class Sample(NamedTuple):
    """One value, or what is to be added to it."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


def changes(pipeline: str, event: Event) -> Iterator[Sample]:
    """What an event adds to the counters of its pipeline; most events add nothing."""
    name = event["event"]
    work = (pipeline, str(event.get("kind", "")))
    if name.startswith("shard_") or name == "open_failed":
        yield Sample(SHARDS, (*work, name.removeprefix("shard_")), 1)
        if not event.get("final", True):
            yield Sample(RETRIES, work, 1)
        for part, seconds in event["seconds"].items():
            yield Sample(SECONDS, (*work, part), seconds)
    if name == "shard_done":
        yield Sample(ITEMS, work, event["items"])
        yield Sample(ROWS, work, event["rows"])
    if name == "published":
        yield Sample(PUBLISHED, work, event["bytes"])
        yield Sample(BAD_INPUTS, work, event["rows"].get("bad_inputs", 0))
    if name == "damaged":
        yield Sample(DAMAGED, work, 1)
    if name == "cached":
        yield Sample(CACHED, work, 1)


@dataclass
class _Run:
    """The counters of one run, from as many segments of its events as were there."""

    name: str
    segments: int = 0
    totals: dict[tuple[Metric, tuple[str, ...]], float] = field(default_factory=dict)

    def read_on(self, store: Store) -> Iterator[Sample]:
        """The counters, with the segments that are new."""
        pipeline = split_run(self.name)[0]
        for segment in read_segments(store, self.name, self.segments):
            self.segments += 1
            for event in segment:
                for metric, labels, value in changes(pipeline, event):
                    self.totals[metric, labels] = self.totals.get((metric, labels), 0) + value
        yield from (Sample(metric, labels, value) for (metric, labels), value in self.totals.items())


class StoreMetrics:
    """Figures of the newest run of each pipeline in a store; every reading after the first costs what is new.

    They outlive drivers and clusters, so an alarm about a run that did not come can rest on them. Trials (`--limit`)
    count for nothing.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._runs: dict[str, _Run] = {}
        self._ended: dict[str, RunState] = {}
        """Runs that have ended for good, without their stages: a year of them is held by a process that serves so long."""
        self._newest: dict[str, RunState] = {}
        """The newest of those by pipeline, whole."""
        self._lock = threading.Lock()

    def read(self) -> list[Sample]:
        """All samples; one alone, that the store is not up, where it cannot be read."""
        with self._lock:
            try:
                return [*self._read(), Sample(UP, (), 1)]
            except MiclipError:
                return [Sample(UP, (), 0)]

    def _read(self) -> Iterator[Sample]:
        there = {pipeline: names[-MOST_RUNS:] for pipeline, names in by_pipeline(list_runs(self.store)).items()}
        self._forget_but(there)
        for pipeline, names in there.items():
            states = (state for name in reversed(names) if (state := self._state(name)))
            newest = next((state for state in states if not state.limited), None)
            if newest is None:
                continue
            yield from self._figures(pipeline, self._whole(newest))
            done = newest if newest.status == "DONE" else next((s for s in states if _succeeded(s)), None)
            if done and (ended := last_sign(self.store, done.run)) is not None:
                yield Sample(SUCCESS, (pipeline,), ended)

    def _figures(self, pipeline: str, state: RunState) -> Iterator[Sample]:
        yield Sample(NUMBER, (pipeline,), state.number)
        yield Sample(RUN_SECONDS, (pipeline,), seconds_taken(self.store, state))
        for status in get_args(RunStatus):
            yield Sample(STATUS, (pipeline, status), float(status == state.status))
        for word in ("published", "to do", "failed"):
            standing = [part for part in state.parts if part.state.replace("cached", "published") == word]
            yield Sample(STAGES, (pipeline, word), len(standing))
        if (sign := last_sign(self.store, state.run)) is not None:
            yield Sample(SIGN, (pipeline,), sign)
        if pipeline not in self._runs or self._runs[pipeline].name != state.run:
            self._runs[pipeline] = _Run(state.run)
        yield from self._runs[pipeline].read_on(self.store)

    def _state(self, run: str) -> RunState | None:
        """The state of a run; what has ended for good is not read again, and is without its stages.

        None for a run that another process begins just now.
        """
        if run not in self._ended:
            state = find_state(self.store, run)
            if state is None or state.status in _MAY_CHANGE:
                return state
            self._ended[run] = state.model_copy(update={"message": "", "stages": (), "unplanned": ()})
        return self._ended[run]

    def _whole(self, newest: RunState) -> RunState:
        """The state of a pipeline's newest run with its stages, which are read once if it has ended for good."""
        if newest.run not in self._ended:
            return newest
        known = self._newest.get(newest.pipeline)
        if known is None or known.run != newest.run:
            known = find_state(self.store, newest.run) or newest
            self._newest[newest.pipeline] = known
        return known

    def _forget_but(self, there: Mapping[str, Sequence[str]]) -> None:
        """Leave only what these runs of each pipeline need."""
        runs = {run for names in there.values() for run in names}
        self._ended = {run: state for run, state in self._ended.items() if run in runs}
        self._newest = {pipeline: state for pipeline, state in self._newest.items() if state.run in runs}
        self._runs = {pipeline: counted for pipeline, counted in self._runs.items() if counted.name in runs}


def _succeeded(state: RunState) -> bool:
    return state.status == "DONE" and not state.limited


def to_text(samples: Iterable[Sample]) -> str:
    """The samples in Prometheus' text exposition format 0.0.4, metric by metric, in the order of METRICS."""
    by_metric: dict[Metric, list[str]] = {}
    for metric, values, value in samples:
        labels = ",".join(f'{name}="{_escaped(text)}"' for name, text in zip(metric.labels, values, strict=True))
        line = f"{metric.exposed}{{{labels}}} {value:.15g}" if labels else f"{metric.exposed} {value:.15g}"
        by_metric.setdefault(metric, []).append(line)
    lines: list[str] = []
    for metric in METRICS:
        if metric in by_metric:
            head = [f"# HELP {metric.exposed} {metric.meaning}", f"# TYPE {metric.exposed} {metric.kind}"]
            lines += [*head, *by_metric[metric]]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
