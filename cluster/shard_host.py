"""One task on one worker: open once, process, encode, store, verify, mark; plain Python under every executor."""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from dataclasses import replace

from cluster.inputs import StoreInputs
from cluster.keep import StoreKeep
from cluster.parquet import EncodedPart, PartEncoder
from cluster.parts import store_artifact, store_part
from cluster.secrets import redact
from cluster.stores.base import make_store, prefetch
from cluster.works import Outcome, Task, Work
from jobs.kinds import get_opener, get_tables
from jobs.protocol import Artifact, Gang, Part, Setting, Worker
from schemas import layout
from schemas.errors import InputUnreadable, MiclipError, ModelUnreachable, OutOfMemory, TableMismatch, Unreachable
from schemas.plans import DoneMarker, Plan
from schemas.tables import get_table

STORED_AT_ONCE = 4
"""Stages whose parts travel side by side; each holds one part in memory."""


class ShardHost:
    """Keeps one worker open and runs tasks on it; a task of another work closes it and opens that one."""

    def __init__(self, store_uri: str, gang: Gang | None = None) -> None:
        self._store = make_store(store_uri)
        self._inputs = StoreInputs(self._store)
        self._gang = gang or Gang()
        self._work: Work | None = None
        self._worker: Worker | None = None

    def run(self, work: Work, task: Task) -> Outcome:
        """Do the task; every error becomes an outcome."""
        try:
            seconds = self._open(work)
        except Unreachable as error:
            return _failed(task, "fatal", error)
        except Exception as error:
            return _failed(task, "open_failed", error, retry=can_retry(error))
        retries_before = self._store.retries
        try:
            outcome = self._process(work, task, seconds)
        except Unreachable as error:
            return _failed(task, "fatal", error)
        except Exception as error:
            return _failed(task, "failed", error, retry=can_retry(error))
        retried = self._store.retries - retries_before
        notes = (*outcome.notes, f"store retries: {retried}") if retried else outcome.notes
        return replace(outcome, notes=notes)

    def _open(self, work: Work) -> dict[str, float]:
        if self._work is not None and self._work.key == work.key:
            return {}
        self._work, self._worker = None, None
        started = time.monotonic()
        opener = get_opener(work.kind)
        self._worker = opener(Setting(work.plans, work.resources, self._gang), self._inputs)
        self._work = work
        return {"open": time.monotonic() - started}

    def _process(self, work: Work, task: Task, seconds: dict[str, float]) -> Outcome:
        assert self._worker is not None
        plans = {plan.digest: plan for plan in work.plans}
        stages = self._unmarked(task)
        if not stages:
            return Outcome(task, "done", seconds=seconds, notes=("already done",))
        keep = StoreKeep(self._store, task.shard.number)
        started = time.monotonic()
        encoders: dict[tuple[str, str], PartEncoder] = {}
        artifacts: dict[str, list[Artifact]] = defaultdict(list)
        try:
            for stage in stages:
                for table in get_tables(plans[stage], task.shard.round):
                    encoders[stage, table] = PartEncoder(get_table(table))
            for made in self._worker.process(task.shard, stages, self._inputs, keep):
                if isinstance(made, Part):
                    _encoder_of(encoders, made).add(made.batch)
                else:
                    artifacts[made.stage].append(made)
            encoded = {key: encoder.finish() for key, encoder in encoders.items()}
        except BaseException:
            for encoder in encoders.values():
                encoder.abandon()
            raise
        seconds["process"] = time.monotonic() - started
        if self._gang.rank:
            return Outcome(task, "done", seconds=seconds)
        started = time.monotonic()

        def store(stage: str) -> DoneMarker:
            parts = {table: some for (of, table), some in encoded.items() if of == stage}
            return self._store_shard(plans[stage], task, parts, artifacts[stage], seconds)

        markers = [marker for _, marker in prefetch(store, stages, width=STORED_AT_ONCE)]
        keep.drop_all()
        rows = sum(part.rows for marker in markers for part in marker.parts)
        seconds["store"] = time.monotonic() - started
        notes = tuple(getattr(self._worker, "notes", ()))
        items = task.shard.stop - task.shard.start
        return Outcome(task, "done", rows, items, seconds, notes=notes, resumed=keep.resumed)

    def _unmarked(self, task: Task) -> list[str]:
        """Stages whose marker is not there yet; another driver, or a worker that died behind it, may have been here.

        The members of a gang do not look, because a marker between two looks would set them apart.
        """
        if self._gang.size > 1:
            return list(task.stages)
        looked = prefetch(lambda stage: self._store.exists(layout.done_key(stage, task.shard.number)), task.stages)
        return [stage for stage, there in looked if not there]

    def _store_shard(
        self,
        plan: Plan,
        task: Task,
        parts: dict[str, list[EncodedPart]],
        artifacts: list[Artifact],
        seconds: dict[str, float],
    ) -> DoneMarker:
        """Parts, then artifacts, then the marker that makes them count; an earlier marker of another try stands."""
        shard = task.shard
        stored_parts = tuple(
            store_part(self._store, table, plan.stage, shard, n, part)
            for table, numbered in parts.items()
            for n, part in enumerate(numbered)
        )
        stored_artifacts = tuple(
            store_artifact(self._store, plan.digest, shard.number, a.name, a.data) for a in artifacts
        )
        marker = DoneMarker(
            shard=shard.number,
            round=shard.round,
            parts=stored_parts,
            artifacts=stored_artifacts,
            seconds={k: round(v, 4) for k, v in seconds.items()},
            attempt=task.attempt,
        )
        self._store.create(layout.done_key(plan.digest, shard.number), marker.canonical_json().encode())
        return marker


def _encoder_of(encoders: dict[tuple[str, str], PartEncoder], part: Part) -> PartEncoder:
    try:
        return encoders[part.stage, part.table]
    except KeyError:
        raise TableMismatch(
            f"the worker gave rows of {part.table} for stage {part.stage}, which declares none"
        ) from None


def can_retry(error: BaseException) -> bool:
    """Whether another try may help: transient I/O and memory, never an application error."""
    transient = (OutOfMemory, InputUnreadable, ModelUnreachable, ConnectionError, TimeoutError, MemoryError)
    # torch is not imported here, and its error has no base class of the standard library that says memory
    return isinstance(error, transient) or type(error).__name__ == "OutOfMemoryError"


def _failed(task: Task, state: str, error: BaseException, retry: bool = False) -> Outcome:
    text = redact("".join(traceback.format_exception(error)))  # it is kept, and libraries speak of urls they signed
    return Outcome(
        task,
        state,  # type: ignore[arg-type]
        error=type(error).__name__,
        message=redact(str(error)),
        traceback=text,
        retry=retry,
        exit_code=error.exit_code if isinstance(error, MiclipError) else 1,
        blamed=error.stages if isinstance(error, MiclipError) else (),
    )
