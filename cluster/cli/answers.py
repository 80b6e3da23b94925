"""Prints the rows of a query: a table for people, JSON, CSV or a Parquet file for machines."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.cli.common import make_table, screen
from schemas.errors import UsageError

MAX_ROWS = 100
"""Rows shown to a person; machines get all."""
MAX_LIST = 16
MIN_TEXT = 60
"""Characters of a text that are shown at least, however narrow the terminal."""


def show_answer(reader: pa.RecordBatchReader, most: int = MAX_ROWS) -> None:
    """The first rows as a table; on a terminal vectors and long texts are abbreviated, elsewhere nothing is."""
    console = screen()
    numbers = [
        field.name for field in reader.schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    ]
    table = make_table(*reader.schema.names, right=numbers)
    longest = max(MIN_TEXT, console.width // max(1, len(reader.schema.names) - len(numbers)))
    shown, more, cut = 0, 0, False
    for batch in reader:
        for row in _rows([batch.slice(0, most - shown)]):
            whole = [brief(value) for value in row]
            cells = [brief(value, longest) for value in row] if console.is_terminal else whole
            cut |= list(map(str, cells)) != list(map(str, whole))
            table.add_row(*cells)
        taken = min(batch.num_rows, most - shown)
        shown, more = shown + taken, more + batch.num_rows - taken
    if not console.is_terminal:  # no line is folded where no screen ends
        unbounded = console.options.update(max_width=1 << 30)
        console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    console.print(table)
    if not shown:
        console.print("[dim]no rows[/dim]")
    left_out = [f"{shown} of {shown + more:,} rows"] * bool(more) + ["long cells cut"] * cut
    if left_out:
        console.print(f"[dim]{', '.join(left_out)}; --json, --csv or --parquet FILE give all[/dim]")


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
    """A Parquet file, which is there when it is whole; returns its rows.

    Raises:
        UsageError: it cannot be written there.
    """
    rows, unfinished = 0, path.with_name(f"{path.name}.unfinished")
    try:
        with pq.ParquetWriter(unfinished, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
                rows += batch.num_rows
        unfinished.replace(path)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error
        raise UsageError(f"{path} cannot be written: {why}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return rows


def _rows(reader: Iterable[pa.RecordBatch]) -> Iterator[tuple[Any, ...]]:
    for batch in reader:
        yield from zip(*(column.to_pylist() for column in batch.columns))


def brief(value: Any, longest: int | None = None) -> Any:
    """A value as a person wants to see it in a cell; with at most so many characters, and then lists with MAX_LIST items."""
    from rich.text import Text

    if value is None:
        return Text("null", "dim")
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, list) and value and not isinstance(value[0], (list, tuple, dict)):
        shown = value if longest is None else value[:MAX_LIST]
        more = f", … {len(value)}" if len(shown) < len(value) else ""
        return Text(f"[{', '.join(str(brief(v)) for v in shown)}{more}]")
    text = str(value)
    return Text(text if longest is None or len(text) <= longest else text[: longest - 1] + "…")


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
