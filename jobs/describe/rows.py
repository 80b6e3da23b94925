"""Rows of the tables of this kind: what is the same for all of a stage is filled in, and parts are of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.described import about
from jobs.protocol import Part
from jobs.rows import ONE, make_batch
from schemas.plans import Plan
from schemas.tables import TABLES

BATCH_ROWS = 1 << 16


def make_parts(plan: Plan, table: str, columns: Mapping[str, Any]) -> Iterator[Part]:
    """Columns as parts of bounded size; what is the same for all rows of a stage is filled in."""
    own = set(TABLES[table].schema.names)
    n = next(len(column) for column in columns.values() if not isinstance(column, ONE))
    whole = {name: column for name, column in {**about(plan.stage), **columns}.items() if name in own}
    for start in range(0, n, BATCH_ROWS):
        rows = slice(start, start + BATCH_ROWS)
        cut = {name: column if isinstance(column, ONE) else column[rows] for name, column in whole.items()}
        yield Part(plan.digest, table, make_batch(table, cut))
