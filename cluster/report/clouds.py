"""Points in a plane whose axes mean nothing, coloured by group; each says its name under the pointer or the arrow keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.report.frame import Series, dot_class, empty_chart, figure, plot_x, plot_y, px, series_group
from cluster.report.html import Html, tag
from cluster.report.scales import make_scale

MOST_DOTS = 400
"""Points of one chart; more are thinned evenly, group by group."""


class Dot(NamedTuple):
    """One point and what is said of it."""

    x: float
    y: float
    words: str


def cloud_chart(title: str, groups: Mapping[str, Sequence[Dot]], colours: Mapping[str, int], note: str = "") -> Html:
    """Points by group, in the order in which groups are given; colours: number of the series of each."""
    everything = [dot for dots in groups.values() for dot in dots]
    if not everything:
        return empty_chart(title, "No point has a place.")
    x, y = make_scale("", [dot.x for dot in everything]), make_scale("", [dot.y for dot in everything])
    every = -(-len(everything) // MOST_DOTS)
    marks, series = [], []
    for number, (name, dots) in enumerate(groups.items()):
        drawn = (_dot(float(plot_x(x, d.x)), float(plot_y(y, d.y)), d.words, colours[name]) for d in dots[::every])
        marks.append(series_group(number, colours[name], tag("g", drawn, class_="cloud")))
        series.append(Series(name, colours[name], f"{len(dots):,}"))
    if every > 1:
        note = f"{note} One of {every} points is drawn.".strip()
    return figure(title, x, y, marks, series, note=note, dots=True, axes=False)


def _dot(x: float, y: float, words: str, colour: int) -> Html:
    return tag(
        "circle", cx=px(x), cy=px(y), r=4.5, class_=dot_class(colour), tabindex=-1, data_tip=words, aria_label=words
    )
