"""The frame of a chart: an SVG with axes, grid, ticks and titles, a caption, and a legend that names the series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cluster.report.colours import series_class, series_dash
from cluster.report.html import Html, join, script_json, tag
from cluster.report.scales import Scale

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 54, 448, 30, 258
"""Where the plot is inside the picture, in pixels."""


class Series(NamedTuple):
    """One name in the legend: its colour number, and a remark such as `12 dead`."""

    name: str
    colour: int
    remark: str = ""


def plot_x(scale: Scale, values: np.ndarray | float) -> np.ndarray:
    """Pixels from left to right."""
    return scale.place(values, LEFT, RIGHT)


def plot_y(scale: Scale, values: np.ndarray | float) -> np.ndarray:
    """Pixels from bottom to top."""
    return scale.place(values, BOTTOM, TOP)


def px(value: float) -> str:
    """A coordinate as short as it can be: tenths of a pixel."""
    text = f"{value:.1f}"
    return text.removesuffix(".0")


def figure(
    title: str,
    x: Scale,
    y: Scale,
    marks: Any,
    series: Sequence[Series] = (),
    hover: dict[str, Any] | None = None,
    note: str = "",
    dots: bool = False,
    axes: bool = True,
) -> Html:
    """A whole chart.

    marks: SVG elements inside the plot. hover: data for the page's script, which shows values under the pointer.
    note: a sentence below, such as what was left out. dots: the legend shows points, not lines. axes: whether places along
    them mean something.
    """
    told = f"{title}: {y.title} against {x.title}" + (f", {len(series)} series" if len(series) > 1 else "")
    svg = tag(
        "svg",
        [_x_axis(x), _y_axis(y)] if axes else None,
        tag("g", marks, class_="marks"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=told,
        tabindex="0" if hover else None,
    )
    data = script_json({**hover, "plot": [LEFT, TOP, RIGHT, BOTTOM]}, class_="hover") if hover else None
    return tag(
        "figure",
        tag("figcaption", title),
        tag("div", svg, data, class_="plot"),
        legend(series, dots) if len(series) > 1 or any(s.remark for s in series) else None,
        tag("p", note, class_="note") if note else None,
        class_="chart",
    )


def legend(series: Sequence[Series], dots: bool = False) -> Html:
    """Buttons that hide and show a series; pointing at one dims the others."""
    items = (
        tag(
            "li",
            tag(
                "button",
                tag(
                    "svg",
                    _dot(s.colour) if dots else _swatch(s.colour),
                    viewBox="0 0 18 8",
                    width=18,
                    height=8,
                    aria_hidden="true",
                ),
                s.name,
                tag("span", s.remark, class_="remark") if s.remark else None,
                type="button",
                aria_pressed="true",
                data_series=number,
                class_=series_class(s.colour),
            ),
        )
        for number, s in enumerate(series)
    )
    return tag("ul", items, class_="legend")


def _swatch(colour: int) -> Html:
    return tag("path", d="M0 4H18", class_="line", stroke_dasharray=series_dash(colour))


def _dot(colour: int) -> Html:
    return tag("circle", cx=9, cy=4, r=3.5, class_=f"dot {dot_class(colour) or ''}".strip())


def dot_class(colour: int) -> str | None:
    """Points whose colour comes again are hollow."""
    return "hollow" if series_dash(colour) else None


def _x_axis(scale: Scale) -> Html:
    spots = [(float(plot_x(scale, value)), label) for value, label in scale.ticks(6)]
    grid = "".join(f"M{px(at)} {TOP}V{BOTTOM}" for at, _ in spots)
    labels = (tag("text", label, x=px(at), y=BOTTOM + 16, text_anchor=_anchor(at)) for at, label in spots)
    title = tag("text", scale.title, x=(LEFT + RIGHT) // 2, y=HEIGHT - 8, text_anchor="middle", class_="axis")
    return tag("g", tag("path", d=grid or "M0 0", class_="grid"), labels, title, class_="ticks")


def _anchor(at: float) -> str:
    return "end" if at > RIGHT - 8 else "middle"


def _y_axis(scale: Scale) -> Html:
    spots = [(float(plot_y(scale, value)), label) for value, label in scale.ticks(5)]
    grid = "".join(f"M{LEFT} {px(at)}H{RIGHT}" for at, _ in spots)
    labels = (tag("text", label, x=LEFT - 7, y=px(at + 4), text_anchor="end") for at, label in spots)
    title = tag("text", scale.title, x=4, y=15, class_="axis")
    return tag("g", tag("path", d=grid or "M0 0", class_="grid"), labels, title, class_="ticks")


def empty_chart(title: str, why: str) -> Html:
    """The place of a chart that has nothing to show."""
    return tag("figure", tag("figcaption", title), tag("p", why, class_="none"), class_="chart")


def series_group(number: int, colour: int, *children: Any) -> Html:
    """The marks of one series, found by its legend button."""
    return tag("g", join(children), class_=series_class(colour), data_series=number)
