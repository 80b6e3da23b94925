"""Matrices of values in colour, with words for every cell under the pointer, a finger or the arrow keys; the page's script draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from cluster.report.colours import series_class
from cluster.report.html import Html, script_json, tag

ASSETS = ("heatmaps.css", "heatmaps.js")
WIDE_FROM = 17
"""Columns from which a figure takes the whole width."""
STEPS = 8
"""Shades of the key below a figure."""

Values = Literal["number", "count", "percent"]


class Cell(NamedTuple):
    """One value and what is said of it. marked: with a dot in its corner."""

    row: int
    column: int
    value: float
    words: str
    marked: bool = False


class Control(NamedTuple):
    """A choice between matrices; options are (value, word). Controls of one name in one section move together."""

    name: str
    label: str
    options: Sequence[tuple[str, str]]


class Matrix(NamedTuple):
    """What a figure shows for one value of each of its controls; cells that are missing have no value.

    most: what the full colour means. values: how numbers are written.
    """

    choice: tuple[str, ...]
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Cell]
    most: float
    row_title: str = ""
    column_title: str = ""
    values: Values = "number"


def heatmap(
    title: str, matrices: Sequence[Matrix], controls: Sequence[Control] = (), note: Any = "", colour: int = 0
) -> Html:
    """A figure of matrices of which the controls choose one; the first is shown when the page opens."""
    selects = (
        tag("select", (tag("option", word, value=value) for value, word in control.options),
            aria_label=f"{control.label}: {title}", title=control.label, data_control=control.name)
        for control in controls
    )  # fmt: skip
    wide = max((len(matrix.columns) for matrix in matrices), default=0) >= WIDE_FROM
    return tag(
        "figure",
        tag("figcaption", title),
        tag("div", selects, class_="choices") if controls else None,
        tag("div", class_="plot"),
        _key(),
        tag("p", note, class_="note") if note else None,
        script_json(_told(title, matrices), class_="matrices"),
        class_=f"chart heatmap {series_class(colour)}" + (" wide" if wide else ""),
    )


def _key() -> Html:
    shades = (
        tag("rect", x=14 * i, width=14, height=10, fill_opacity=f"{shade(i / (STEPS - 1)):.2f}") for i in range(STEPS)
    )
    return tag(
        "p",
        "0 ",
        tag("svg", shades, width=14 * STEPS, height=10, aria_hidden="true"),
        " ",
        tag("span", class_="most"),
        class_="key",
    )


def shade(share: float) -> float:
    """Opacity of a value, as a share of the largest; the script has the same."""
    return 0.06 + 0.94 * min(max(share, 0.0), 1.0)


def _told(title: str, matrices: Sequence[Matrix]) -> dict[str, Any]:
    """Labels of axes and words of cells once each, and the cells as five numbers: row, column, value, words, marked."""
    axes: dict[tuple[str, ...], int] = {}
    words: dict[str, int] = {}
    shown = []
    for matrix in matrices:
        cells = [
            [cell.row, cell.column, short(cell.value), words.setdefault(cell.words, len(words)), int(cell.marked)]
            for cell in matrix.cells
            if math.isfinite(cell.value)
        ]
        shown.append({
            "choice": "|".join(matrix.choice),
            "rows": axes.setdefault(tuple(matrix.rows), len(axes)), "columns": axes.setdefault(tuple(matrix.columns), len(axes)),
            "rowTitle": matrix.row_title, "columnTitle": matrix.column_title,
            "most": short(matrix.most), "values": matrix.values, "cells": [number for cell in cells for number in cell],
        })  # fmt: skip
    return {"title": title, "axes": [list(labels) for labels in axes], "words": list(words), "matrices": shown}


def short(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")
