"""Columns over whole numbers: how much of each of a few groups falls on each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.report.charts import Line
from cluster.report.frame import BOTTOM, Series, empty_chart, figure, plot_x, plot_y, px, series_group
from cluster.report.html import Html, tag
from cluster.report.numbers import percent
from cluster.report.scales import Scale, make_scale

ROOM = 0.8
"""Share of the way from one number to the next that columns take."""


def columns_chart(title: str, x_title: str, y_title: str, lines: Sequence[Line], note: str = "") -> Html:
    """Shares as columns side by side; each line's x are whole numbers, ascending, its y are shares from 0 to 1."""
    lines = [line for line in lines if len(line.x)]
    if not lines or not any(line.y.any() for line in lines):
        return empty_chart(title, "Nothing to count.")
    places = np.unique(np.concatenate([line.x for line in lines]))
    step = float(np.diff(places).min()) if len(places) > 1 else 1.0
    x = Scale(x_title, float(places[0]) - step / 2, float(places[-1]) + step / 2, whole=True)
    y = make_scale(y_title, np.concatenate([line.y for line in lines]), zero=True)
    width = step * ROOM / len(lines)
    marks = []
    for number, line in enumerate(lines):
        drawn = (
            _column(x, y, place - step * ROOM / 2 + number * width, width, share, f"{line.name}, {x_title} {place:g}")
            for place, share in zip(line.x.tolist(), line.y.tolist())
            if share > 0
        )
        marks.append(series_group(number, line.colour, tag("g", drawn, class_="columns-of")))
    series = [Series(line.name, line.colour, line.remark) for line in lines]
    return figure(title, x, y, marks, series, note=note, dots=True)


def _column(x: Scale, y: Scale, start: float, width: float, share: float, words: str) -> Html:
    left, right = float(plot_x(x, start)), float(plot_x(x, start + width))
    top = float(plot_y(y, share))
    tip = f"{words}: {percent(share)}"
    return tag("rect", x=px(left), y=px(top), width=px(right - left), height=px(BOTTOM - top), data_tip=tip,
               tabindex=0, aria_label=tip)  # fmt: skip
