"""What happened in a run, in order: one stream of small dicts for the store, the terminal and the log file."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from cluster.alive import Heart
from cluster.board import Board
from cluster.stores.base import Store, create_unique, get_many
from cluster.works import Outcome, Work
from schemas import layout
from schemas.errors import MiclipError
from schemas.plans import Plan, Published

Event = dict[str, Any]
Listener = Callable[[Event], None]
FLUSH_EVENTS = 200
FIRST_PAUSE, LAST_PAUSE = 2.0, 60.0
"""Seconds between two segments of a run that has just begun, and of one that takes hours."""
ENDINGS = ("finished", "stopped")
"""The last event of a run, which is written at once."""


def _site(plans: Sequence[Plan]) -> list[str]:
    """The site that all of them are about, if there is one: what is trained site by site is told apart by it."""
    sites = {plan.stage.params.get("site") for plan in plans}
    return [str(site) for site in sites if site and len(sites) == 1]


class EventLog:
    """Builds events and hands each to every listener. Events never enter a table.

    A listener that fails by a fault of its own is named once and ends nothing; what it raises of ours (the store is away,
    somebody stopped the run) goes on.
    """

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = list(listeners)
        self._deaf: list[Listener] = []

    def add(self, listener: Listener) -> None:
        """Hand the events from here on to this listener too."""
        self._listeners.append(listener)

    def emit(self, event: str, **fields: Any) -> None:
        """Tell every listener; `time` is seconds since the epoch, for people."""
        record = {"time": round(time.time(), 3), "event": event, **fields}
        for listener in self._listeners:
            try:
                listener(record)
            except MiclipError:
                raise
            except Exception as error:
                self._name(listener, error)

    def _name(self, listener: Listener, error: Exception) -> None:
        if listener not in self._deaf:
            self._deaf.append(listener)
            name = getattr(listener, "__qualname__", type(listener).__name__)
            self.emit("error", subject=name, message=f"does not hear all events: {type(error).__name__}: {error}")

    def cached(self, plans: Sequence[Plan]) -> None:
        """Stages that were published before."""
        for plan in plans:
            self.emit("cached", **_stage(plan))

    def planned(self, board: Board, works: Sequence[Work]) -> None:
        """What is left of works that may start."""
        for work in works:
            key, ready = work.key, list(board.waiting(work.key).values())
            first = work.plans[0].rounds[0] if work.plans[0].rounds else None
            self.emit(
                "planned",
                work=key,
                title=" ".join([work.title, *_site(work.plans)]),
                kind=work.kind,
                first_round=first.name if first else "",
                stages=[p.digest for p in work.plans],
                shards=first.n_shards if first else 0,
                rows=first.rows if first else 0,
                rows_left=board.rows_left(key),
                ready=len(ready),
                workers=min(work.resources.workers, len(ready)),
            )

    def outcome(self, outcome: Outcome, board: Board) -> None:
        """One task ended, one way or another."""
        task = outcome.task
        work = board.works[task.work]
        plan = next(plan for plan in work.plans if plan.digest == task.stages[0])
        record: Event = {
            "work": task.work,
            "title": work.title,
            "kind": plan.stage.kind,
            "shard": task.shard.number,
            "round": task.shard.round,
            "round_name": plan.rounds[task.shard.round].name,
            "round_rows": plan.rounds[task.shard.round].rows,
            "attempt": task.attempt + 1,
            "stages": list(task.stages),
            "items": outcome.items,
            "rows": outcome.rows,
            "seconds": {k: round(v, 3) for k, v in outcome.seconds.items()},
        }
        if outcome.resumed:
            record["resumed"] = True
        if outcome.notes:
            record["notes"] = list(outcome.notes)
        if outcome.state != "done":
            record.update(
                error=outcome.error, message=outcome.message, final=bool(outcome.blamed) or task.id in board.failed
            )
        self.emit(f"shard_{outcome.state}" if outcome.state != "open_failed" else "open_failed", **record)

    def published(self, published: Published) -> None:
        """A stage became a table."""
        stage = published.stage
        rows = {table: published.rows(table) for table in published.tables}
        size = sum(part.bytes for parts in published.tables.values() for part in parts)
        self.emit(
            "published",
            stage=stage.digest,
            kind=stage.kind,
            subject=stage.subject,
            output=stage.output,
            rows=rows,
            bytes=size,
        )

    def damaged(self, plan: Plan, error: Exception) -> None:
        """A stage could not be published because a stored part is gone or differs."""
        self.emit("damaged", **_stage(plan), message=str(error))


def _stage(plan: Plan) -> Event:
    stage = plan.stage
    return {"stage": stage.digest, "kind": stage.kind, "subject": stage.subject, "output": stage.output}


class StoreEvents:
    """Writes events of one run as numbered JSONL segments, because objects cannot be appended to.

    Between `start` and `close` it also writes from time to time what waits while nothing happens, and signs of life.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self._run_id = run_id
        self._heart = Heart(store, run_id)
        self._lines: list[str] = []
        self._sent = b""
        """A segment that may be in the store or not: one more try sends the same, which can then be told."""
        self._segment = len(_segments(store, run_id))
        self._pause = FIRST_PAUSE
        self._flushed = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_flushing, name="miclip-events", daemon=True)

    def start(self) -> None:
        """Begin to show signs of life."""
        self._heart.start()
        self._thread.start()

    def close(self) -> None:
        """Write what is left."""
        self._heart.stop()
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush()

    def __call__(self, event: Event) -> None:
        """Take one event; a segment is written when it is large or old enough, less often the longer the run, and at its end."""
        with self._lock:
            self._lines.append(json.dumps(event, ensure_ascii=False, default=str))
            if event["event"] in ENDINGS:
                with suppress(MiclipError):  # `close` tries again, and says what is wrong
                    self._flush()
            elif len(self._lines) >= FLUSH_EVENTS or self._is_due():
                self._flush()

    def _is_due(self) -> bool:
        return time.monotonic() - self._flushed > self._pause

    def flush(self) -> None:
        """Write what is waiting; a segment of that number written by another process is stepped over."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        while self._sent or self._lines:
            if not self._sent:
                self._sent, self._lines = ("\n".join(self._lines) + "\n").encode(), []
            while not create_unique(self._store, layout.events_key(self._run_id, self._segment), self._sent):
                self._segment += 1
            self._segment += 1
            self._sent = b""
            self._pause = min(LAST_PAUSE, self._pause * 1.1)

    def _keep_flushing(self) -> None:
        while not self._ended.wait(FIRST_PAUSE):
            try:
                with self._lock:
                    if self._is_due():
                        self._flush()
            except MiclipError:  # the run itself meets this store too and says what is wrong with it
                continue


def read_events(store: Store, run_id: str) -> list[Event]:
    """All events of a run, in order."""
    return [event for segment in read_segments(store, run_id) for event in segment]


def read_segments(store: Store, run_id: str, known: int = 0) -> Iterator[list[Event]]:
    """The events of a run, segment by segment, in order; the first `known` segments are left out."""
    for _, data in get_many(store, _segments(store, run_id)[known:]):
        yield [json.loads(line) for line in data.decode().splitlines()]


def _segments(store: Store, run_id: str) -> list[str]:
    return [key for key in store.list(layout.events_prefix(run_id)) if key.endswith(".jsonl")]
