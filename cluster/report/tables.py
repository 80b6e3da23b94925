"""Tables for people: sorted by a click, filtered by a word, numbers on one edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cluster.report.html import Html, tag

FILTER_FROM = 12
"""Rows from which a table has a filter."""
MOST_ROWS = 300
"""Rows that a page shows; what is left out is said below the table."""


class Column(NamedTuple):
    """A heading; numbers stand right and sort as numbers; `hint` explains the heading."""

    title: str
    number: bool = False
    hint: str = ""


class Cell(NamedTuple):
    """What is shown, and what it sorts by where that is not what is shown."""

    shown: Any
    sort: float | str | None = None


def data_table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Any]], rest: str = "") -> Html:
    """A table with a caption. A cell is text, HTML, a number or a `Cell`; `rest` says where rows that are cut off are."""
    shown = rows[:MOST_ROWS]
    table = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", (_heading(column) for column in columns))),
        tag("tbody", (tag("tr", (_cell(c, v) for c, v in zip(columns, row, strict=True))) for row in shown)),
    )
    words = tag("input", type="search", class_="filter", placeholder="Filter rows", aria_label=f"Filter: {caption}")
    left = len(rows) - len(shown)
    return tag(
        "div",
        words if len(shown) >= FILTER_FROM else None,
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption),
        tag("p", f"{left:,} more rows are not on this page. {rest}", class_="note") if left else None,
        class_="table",
    )


def _heading(column: Column) -> Html:
    button = tag("button", column.title, type="button", title=column.hint or None)
    return tag("th", button, scope="col", class_="number" if column.number else None)


def _cell(column: Column, value: Any) -> Html:
    cell = value if isinstance(value, Cell) else Cell(value)
    sort = cell.sort if cell.sort is None or cell.sort == cell.sort else ""  # NaN sorts last, as nothing
    return tag("td", cell.shown, class_="number" if column.number else None, data_sort=sort)
