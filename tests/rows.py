"""Rows of any table of `schemas/tables.py`, different in every row and column and easy to tell apart."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from schemas.columns import VECTOR, Column
from schemas.tables import get_table


def make_rows(table: str, n: int) -> pa.RecordBatch:
    """n rows; every third value is null where a null may be."""
    columns = get_table(table).columns
    data = {column.name: [make_value(column, place, row) for row in range(n)] for place, column in enumerate(columns)}
    return pa.RecordBatch.from_pydict(data, schema=get_table(table).schema)


def make_value(column: Column, place: int, row: int) -> Any:
    """A value of the column's type that depends on the column's place and the row."""
    kind = column.type
    if column.nullable and row % 3 == 2:
        return None
    if kind == VECTOR:
        return [row + i / 8 for i in range(4)]
    if pa.types.is_map(kind):
        return [("colour", f"red {row}"), ("größe", "a 'b' \"c\"")][: row % 3]
    if pa.types.is_list(kind):
        return [f"site.{i}" if pa.types.is_string(kind.value_type) else row + i for i in range(row % 4)]
    if pa.types.is_boolean(kind):
        return row % 2 == 0
    if pa.types.is_binary(kind):
        return bytes([0, 255, row % 256, place])
    if pa.types.is_string(kind):
        return f"{column.name} ü {row % 97}"
    if pa.types.is_floating(kind):
        return row / 4 - place
    if kind == pa.int64():
        return row if place < 5 else row + (1 << 40)
    return row % 1000
