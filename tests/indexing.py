"""An image set through the whole corridor in this process, for tests: listed, planned, indexed, published, read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.board import Board
from cluster.events import EventLog
from cluster.executor import SerialExecutor, StopFlag
from cluster.files import Files
from cluster.inputs import StoreInputs
from cluster.listing import load_image_facts, plan_index
from cluster.run import run_stages
from cluster.stores.base import Store, make_store
from jobs.protocol import ImageFacts
from schemas.cells import Images
from schemas.plans import Plan, Resources


class Indexed:
    """One published index and what it says."""

    def __init__(self, store: Store, plan: Plan, events: list[dict[str, Any]]) -> None:
        self.store = store
        self.plan = plan
        self.events = events
        self.inputs = StoreInputs(store)
        facts = load_image_facts(store, plan.digest)
        assert facts is not None
        self.facts: ImageFacts = facts

    def rows(self, table: str = "images", stage: bool = False) -> list[dict[str, Any]]:
        """All rows of a table, by default without the digest of the stage."""
        rows = [row for batch in self.inputs.table(self.plan.digest, table) for row in batch.to_pylist()]
        return rows if stage else [{k: v for k, v in row.items() if k != "stage"} for row in rows]

    def column(self, name: str, table: str = "images") -> list[Any]:
        """One column."""
        return [row[name] for row in self.rows(table)]


def index(folder: Path, ref: str, shard_rows: int | None = None, threads: int = 2, **images: Any) -> Indexed:
    """Index an image set into the store at `folder`; raises the error of the first shard that failed."""
    store = make_store(str(folder))
    plan = plan_index(Files(), Images(ref=ref, **images), shard_rows).freeze(store)
    events: list[dict[str, Any]] = []
    board = run_index(store, plan, threads, events)
    for outcome in board.failed.values():
        raise ShardFailed(outcome.error, outcome.message)
    return Indexed(store, plan, events)


def run_index(store: Store, plan: Plan, threads: int = 2, events: list[dict[str, Any]] | None = None) -> Board:
    """Run what is left of a plan in this process."""
    log = EventLog(events.append) if events is not None else EventLog()
    return run_stages([(plan, Resources(decode_threads=threads))], store, SerialExecutor(store.uri), log, StopFlag())


class ShardFailed(Exception):
    """The error class and message of a failed shard."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(f"{error}: {message}")
        self.error = error
        self.message = message
