"""Prints the rows of a query: a table for people, JSON, CSV or a Parquet file for machines."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.cli.common import make_table, screen

MAX_ROWS = 100
"""Rows shown to a person; machines get all."""
MAX_TEXT = 60


def show_answer(reader: pa.RecordBatchReader, most: int = MAX_ROWS) -> None:
    """The first rows as a table, vectors and long texts abbreviated."""
    numbers = [
        field.name for field in reader.schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    ]
    table = make_table(*reader.schema.names, right=numbers)
    shown, more = 0, 0
    for batch in reader:
        for row in _rows([batch.slice(0, most - shown)]):
            table.add_row(*map(brief, row))
        taken = min(batch.num_rows, most - shown)
        shown, more = shown + taken, more + batch.num_rows - taken
    console = screen()
    console.print(table)
    if more:
        console.print(f"[dim]{shown} of {shown + more:,} rows; --json, --csv or --parquet FILE give all[/dim]")


def write_json(reader: pa.RecordBatchReader) -> None:
    """A JSON list of objects, written as the rows come."""
    names = reader.schema.names
    sys.stdout.write("[")
    for number, row in enumerate(_rows(reader)):
        sys.stdout.write(
            (",\n" if number else "\n") + json.dumps(dict(zip(names, map(_plain, row))), ensure_ascii=False)
        )
    sys.stdout.write("\n]\n")
    sys.stdout.flush()


def write_csv(reader: pa.RecordBatchReader) -> None:
    """CSV with a header; lists and maps as JSON."""
    writer = csv.writer(sys.stdout)
    writer.writerow(reader.schema.names)
    for row in _rows(reader):
        writer.writerow([json.dumps(_plain(v)) if isinstance(v, (list, dict)) else _plain(v) for v in row])


def write_parquet(reader: pa.RecordBatchReader, path: Path) -> int:
    """A Parquet file; returns its rows."""
    rows = 0
    with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _rows(reader: Iterable[pa.RecordBatch]) -> Iterator[tuple[Any, ...]]:
    for batch in reader:
        yield from zip(*(column.to_pylist() for column in batch.columns))


def brief(value: Any) -> Any:
    """A value as a person wants to see it in a cell."""
    from rich.text import Text

    if value is None:
        return Text("null", "dim")
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, list) and value and not isinstance(value[0], (list, tuple, dict)) and len(value) > 4:
        return f"[{', '.join(str(brief(v)) for v in value[:3])}, … {len(value)}]"
    text = str(value)
    return Text(text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, list):
        pairs = value and all(isinstance(v, tuple) and len(v) == 2 for v in value)
        return {str(k): _plain(v) for k, v in value} if pairs else [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
