"""Selftest plans, a run of them, and what a store holds afterwards: shared by the tests of board, pool and executors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster import ledger
from cluster.board import Board
from cluster.events import EventLog
from cluster.executor import Executor, StopFlag
from cluster.run import run_stages
from cluster.stores.base import Store, make_store
from cluster.works import Work, group_siblings
from jobs.protocol import Cell, Known
from jobs.selftest.plan import make_plans
from schemas.plans import Plan, Resources
from schemas.selftest_specs import SelftestSpec

Todo = list[tuple[Plan, Resources]]


def selftest(resources: Resources | None = None, **fields: Any) -> Todo:
    """The plans of one selftest cell."""
    cell = Cell(name="selftest", spec=SelftestSpec(**fields))
    return [(plan, resources or Resources()) for plan in make_plans(cell, Known({}, {}))]


def selftest_works(n: int, shards: int, resources: Resources | None = None, **fields: Any) -> list[Work]:
    """`n` works of `shards` shards each, and one shard more in a second round."""
    todo = [
        pair for i in range(n) for pair in selftest(resources, subject=f"s{i}", rows=shards, shard_rows=1, **fields)
    ]
    return group_siblings(todo)


@dataclass
class Ran:
    """A finished run: its board and its events."""

    board: Board
    events: list[dict[str, Any]]

    def of(self, name: str) -> list[dict[str, Any]]:
        """Events of one name."""
        return [event for event in self.events if event["event"] == name]


def run(todo: Todo, store: str | Store, executor: Executor, stop: StopFlag | None = None) -> Ran:
    """`run_stages`, with its events kept."""
    events: list[dict[str, Any]] = []
    opened = make_store(store) if isinstance(store, str) else store
    board = run_stages(todo, opened, executor, EventLog(events.append), stop or StopFlag())
    return Ran(board, events)


def contents(store: str) -> dict[str, bytes]:
    """Every object that is a result: parts, frozen plans and published pointers; markers also hold durations."""
    opened = make_store(store)
    return {key: opened.get(key) for key in opened.list("") if "/shards/" not in key and not key.startswith("runs/")}


def markers(store: str, todo: Todo) -> dict[tuple[str, int], Any]:
    """(stage, shard) -> done marker."""
    opened = make_store(store)
    digests = [plan.digest for plan, _ in todo]
    return {(d, n): ledger.load_done(opened, d, n) for d in digests for n in ledger.done_shards(opened, d)}


def published_rows(store: str, todo: Todo) -> list[list[int]]:
    """Per stage, the rows of its table `selftest` in part order, as they are stored."""
    from cluster.parquet import read_part

    opened = make_store(store)
    rows = []
    for plan, _ in todo:
        published = ledger.load_published(opened, plan.digest)
        parts: Sequence[Any] = published.tables["selftest"] if published else ()
        rows.append([row for part in parts for row in read_part(opened.get(part.key)).column("row").to_pylist()])
    return rows
