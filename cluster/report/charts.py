"""The charts of a report: lines, steps, points with a frontier, and counts over two axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cluster.report.colours import series_dash
from cluster.report.frame import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Series,
    dot_class,
    empty_chart,
    figure,
    plot_x,
    plot_y,
    px,
    series_group,
)
from cluster.report.html import Html, join, tag
from cluster.report.numbers import short_number
from cluster.report.reduce import pareto, running_mean, thin, thin_extremes
from cluster.report.scales import Scale, make_scale

MOST_AREAS = 6
"""Outlines up to which the ground below each is tinted."""
GRID_COLUMNS, GRID_ROWS = 44, 26


class Line(NamedTuple):
    """One line: x ascending; `colour` numbers the series. stressed: places x of points that have a dot."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int
    remark: str = ""
    stressed: tuple[float, ...] = ()


class Point(NamedTuple):
    """One labelled point; `tip` is shown under the pointer."""

    x: float
    y: float
    name: str
    tip: str
    colour: int


def line_chart(
    title: str,
    x_title: str,
    y_title: str,
    lines: Sequence[Line],
    log_y: bool = False,
    smooth: bool = False,
    counts: bool = False,
    note: str = "",
    at: Sequence[tuple[float, str]] = (),
    from_zero: bool = True,
    steps: bool = True,
    log_x: bool = False,
) -> Html:
    """Lines over a common axis; `smooth` draws a running mean, and each step behind it faintly; `counts` begin at 0.

    at: (x, word) of places along the axis that are marked. from_zero: the axis of x begins at 0. steps: x are whole numbers.
    """
    lines = [line for line in lines if np.isfinite(line.y).any()]
    if not lines:
        return empty_chart(title, "No values were logged.")
    x = make_scale(x_title, np.concatenate([line.x for line in lines]), log=log_x, zero=from_zero, whole=steps)
    y = make_scale(y_title, np.concatenate([line.y for line in lines]), log=log_y, zero=counts, whole=counts)
    marks, told = [], []
    for number, line in enumerate(lines):
        drawn = thin(line.x, running_mean(line.y) if smooth else line.y)
        raw = _path(x, y, *thin_extremes(line.x, line.y), class_="raw") if smooth else None
        main = _path(x, y, *drawn, class_="line", stroke_dasharray=series_dash(line.colour))
        marks.append(series_group(number, line.colour, raw, main, _stressed(x, y, line)))
        told.append({"name": line.name, "x": _listed(plot_x(x, drawn[0])), "at": _words(drawn[0]),
                     "y": _listed(plot_y(y, drawn[1])), "value": _words(drawn[1])})  # fmt: skip
    series = [Series(line.name, line.colour, line.remark) for line in lines]
    return figure(title, x, y, [marks, _flags(x, at)], series, {"x": x_title, "lines": told}, note)


def step_chart(title: str, x: Scale, y_title: str, edges: np.ndarray, lines: Sequence[Line], note: str = "") -> Html:
    """Histograms as outlines; each line's y are the counts between `edges`, its x is not used."""
    lines = [line for line in lines if line.y.sum() > 0]
    if not lines:
        return empty_chart(title, "Nothing to count.")
    y = make_scale(y_title, np.concatenate([line.y for line in lines]), zero=True, whole=True)
    between = [f"{short_number(float(a))} to {short_number(float(b))}" for a, b in itertools.pairwise(edges)]
    at = _listed((plot_x(x, edges[:-1]) + plot_x(x, edges[1:])) / 2)
    marks, told = [], []
    for number, line in enumerate(lines):
        outline = np.repeat(edges, 2)[1:-1], np.repeat(line.y, 2)
        path = _path(x, y, *outline, class_="line", stroke_dasharray=series_dash(line.colour))
        fill = _path(x, y, np.r_[edges[0], outline[0], edges[-1]], np.r_[0, outline[1], 0], class_="area")
        marks.append(series_group(number, line.colour, fill if len(lines) <= MOST_AREAS else None, path))
        told.append(
            {"name": line.name, "x": at, "at": between, "y": _listed(plot_y(y, line.y)), "value": _words(line.y)}
        )
    series = [Series(line.name, line.colour, line.remark) for line in lines]
    return figure(title, x, y, marks, series, {"x": "", "lines": told}, note)


def scatter_chart(
    title: str,
    x_title: str,
    y_title: str,
    points: Sequence[Point],
    frontier: str = "",
    log_x: bool = False,
    log_y: bool = False,
    note: str = "",
) -> Html:
    """Labelled points; `frontier` joins those that no other beats in both (less is better) and says so."""
    points = [p for p in points if _shown(p.x, log_x) and _shown(p.y, log_y)]
    if not points:
        return empty_chart(title, "No finite values.")
    x = make_scale(x_title, [p.x for p in points], log=log_x)
    y = make_scale(y_title, [p.y for p in points], log=log_y)
    spots = [(float(plot_x(x, p.x)), float(plot_y(y, p.y))) for p in points]
    best = sorted(pareto([(p.x, p.y) for p in points]), key=lambda i: spots[i])
    staircase = "M" + "L".join(f"{px(spots[i][0])} {px(spots[i][1])}" for i in best)
    line = tag("path", d=staircase, class_="frontier") if frontier and len(best) > 1 else None
    marks = [series_group(n, p.colour, _dot(p, at)) for n, (p, at) in enumerate(zip(points, spots))]
    names = _place_labels([p.name for p in points], spots, best if frontier else range(len(points)))
    series = [Series(p.name, p.colour) for p in points]
    return figure(
        title,
        x,
        y,
        [line, marks, names],
        series,
        note=" ".join(filter(None, [frontier if line else "", note])),
        dots=True,
    )


def grid_chart(title: str, x: Scale, y: Scale, xs: np.ndarray, ys: np.ndarray, colour: int, note: str = "") -> Html:
    """How many of the points (xs, ys) are in each cell of a grid; darker on light ground, lighter on dark, is more."""
    at_x, at_y = plot_x(x, xs), plot_y(y, ys)
    keep = np.isfinite(at_x) & np.isfinite(at_y)
    if not keep.any():
        return empty_chart(title, "No finite values.")
    wide, high = (RIGHT - LEFT) / GRID_COLUMNS, (BOTTOM - TOP) / GRID_ROWS
    column = np.clip(((at_x[keep] - LEFT) / wide).astype(int), 0, GRID_COLUMNS - 1)
    row = np.clip(((at_y[keep] - TOP) / high).astype(int), 0, GRID_ROWS - 1)
    counts = np.zeros((GRID_ROWS, GRID_COLUMNS), np.int64)
    np.add.at(counts, (row, column), 1)
    most = math.log1p(counts.max())
    cells = (
        tag("rect", x=px(LEFT + c * wide), y=px(TOP + r * high), width=px(wide + 0.2), height=px(high + 0.2),
            fill_opacity=f"{0.15 + 0.85 * math.log1p(counts[r, c]) / most:.2f}", data_tip=f"{counts[r, c]:,} here")
        for r, c in np.argwhere(counts)
    )  # fmt: skip
    return figure(title, x, y, series_group(0, colour, tag("g", join(cells), class_="cells")), note=note)


def _path(x: Scale, y: Scale, xs: np.ndarray, ys: np.ndarray, **attributes: object) -> Html:
    """A path through the finite points; a gap where a value is missing."""
    parts, pen = [], "M"
    for at_x, at_y in zip(plot_x(x, xs), plot_y(y, ys)):
        if not (math.isfinite(at_x) and math.isfinite(at_y)):
            pen = "M"
            continue
        parts.append(f"{pen}{px(at_x)} {px(at_y)}")
        pen = "L"
    return tag("path", d="".join(parts), **attributes)


def _stressed(x: Scale, y: Scale, line: Line) -> list[Html]:
    """Dots on a line; none where its value is missing."""
    found = [(a, b) for a, b in zip(line.x.tolist(), line.y.tolist()) if a in line.stressed and math.isfinite(b)]
    return [tag("circle", cx=px(float(plot_x(x, a))), cy=px(float(plot_y(y, b))), r=5) for a, b in found]


def _flags(x: Scale, at: Sequence[tuple[float, str]]) -> list[Html]:
    """Upright lines with a word in a disc on top."""
    drawn = []
    for value, word in at:
        spot = px(float(plot_x(x, value)))
        disc = tag("circle", cx=spot, cy=TOP + 9, r=9)
        drawn.append(
            tag(
                "g",
                tag("path", d=f"M{spot} {TOP}V{BOTTOM}"),
                disc,
                tag("text", word, x=spot, y=TOP + 13, text_anchor="middle"),
                class_="flag",
            )
        )
    return drawn


def _dot(point: Point, at: tuple[float, float]) -> Html:
    return tag(
        "circle",
        cx=px(at[0]),
        cy=px(at[1]),
        r=5,
        class_=dot_class(point.colour),
        tabindex=0,
        data_tip=point.tip,
        aria_label=point.tip,
    )


def _place_labels(names: Sequence[str], spots: Sequence[tuple[float, float]], order: Sequence[int]) -> list[Html]:
    """Names beside their points where there is room for them; those that come first in `order` have first choice."""
    taken: list[tuple[float, float, float, float]] = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    labels = []
    for i in order:
        x, y = spots[i]
        width = 6.2 * len(names[i])
        for at, base, anchor, back in (
            (x + 8, y + 4, "start", 0),
            (x - 8, y + 4, "end", width),
            (x, y - 9, "middle", width / 2),
            (x, y + 18, "middle", width / 2),
        ):
            box = (at - back, base - 10, at - back + width, base + 2)
            if box[0] > LEFT and box[2] < RIGHT and box[1] > TOP and box[3] < BOTTOM and not _hits(box, taken):
                taken.append(box)
                labels.append(tag("text", names[i], x=px(at), y=px(base), text_anchor=anchor, class_="name"))
                break
    return labels


def _hits(box: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> bool:
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)


def _shown(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _listed(values: np.ndarray) -> list[float | None]:
    return [round(float(v), 1) if math.isfinite(v) else None for v in values]


def _words(values: np.ndarray) -> list[str]:
    return [short_number(float(v)) for v in values]
