"""Asks the SQL of a page of docs/ about published tables, so that a test can say what it should answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from cluster.inputs import StoreInputs
from cluster.stores.base import Store
from schemas.plans import Plan
from schemas.tables import TABLES

DOCS = Path(__file__).parent.parent / "docs"
Lake = duckdb.DuckDBPyConnection


def open_tables(store: Store, plans: Sequence[Plan], tables: Sequence[str]) -> Lake:
    """These tables of these stages, by their names."""
    connection = duckdb.connect()
    for table in tables:
        batches = [batch for plan in plans for batch in StoreInputs(store).table(plan.digest, table)]
        connection.register(table, pa.Table.from_batches(batches, TABLES[table].schema))
    return connection


def block(page: str, about: str) -> str:
    """The one SQL block of a page with this text in it."""
    blocks = re.findall(r"^```sql\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    (query,) = [found for found in blocks if about in found]
    return str(query)


def ask(lake: Lake, page: str, about: str) -> list[dict[str, Any]]:
    """The answer to the one SQL block of a page with this text in it."""
    return lake.sql(block(page, about)).to_arrow_table().to_pylist()
