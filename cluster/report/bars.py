"""Bars with intervals inside the cells of a table, so that numbers, names and lengths stand in one row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cluster.report.colours import series_class
from cluster.report.html import Html, tag
from cluster.report.tables import Cell

ASSETS = ("bars.css",)
WIDE, HIGH = 200, 16


class Bar(NamedTuple):
    """A value with the ends of its 95 % interval where that is known."""

    value: float
    low: float | None = None
    high: float | None = None


class Span(NamedTuple):
    """What the width of a cell stands for; bars of one column share it."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Place of a value, from 0 to `WIDE`."""
        return (min(max(value, self.low), self.high) - self.low) / (self.high - self.low) * WIDE


def make_span(bars: Iterable[Bar], *others: float) -> Span:
    """From zero, or below it, to the largest end of any interval."""
    values = [0.0, *others, *(v for bar in bars for v in bar if v is not None and math.isfinite(v))]
    low, high = min(values), max(values)
    if low == high:
        return Span(0.0, 1.0)
    room = (high - low) * 0.03
    return Span(low - room if low < 0 else low, high + room if high > 0 else high)


def mean_bar(bars: Sequence[Bar]) -> Bar:
    """One bar for several seeds: their mean, and an interval that holds those of all."""
    lows, highs = ([v for v in ends if v is not None] for ends in ([b.low for b in bars], [b.high for b in bars]))
    return Bar(sum(b.value for b in bars) / len(bars), min(lows, default=None), max(highs, default=None))


def bar_cell(
    bar: Bar | None,
    span: Span,
    colour: int,
    text: str,
    best: bool = False,
    remark: str = "",
    limit: float | None = None,
) -> Cell:
    """A cell that sorts by its value. best: nobody does better. remark: said below. limit: what nobody can exceed."""
    if bar is None:
        return Cell("–")
    interval = "" if bar.low is None or bar.high is None else f"95 % interval {bar.low:.3g} to {bar.high:.3g}"
    drawn = tag(
        "svg",
        tag("path", d=f"M{span.at(0):.1f} 0V{HIGH}", class_="zero"),
        tag("path", d=f"M{span.at(limit):.1f} 1V{HIGH - 1}", class_="limit") if limit is not None else None,
        _rect(span, bar.value),
        _whisker(span, bar),
        viewBox=f"0 0 {WIDE} {HIGH}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    words = tag("span", tag("b", text, " ★") if best else text, class_="value")
    more = tag("span", remark, class_="remark") if remark else None
    classes = f"barred {series_class(colour)}" + (" best" if best else "")
    return Cell(tag("div", drawn, words, more, class_=classes, title=interval or None), bar.value)


def _rect(span: Span, value: float) -> Html:
    start, stop = sorted((span.at(0), span.at(value)))
    return tag("rect", x=f"{start:.1f}", y=4, width=f"{stop - start:.1f}", height=8, class_="length")


def _whisker(span: Span, bar: Bar) -> Html | None:
    if bar.low is None or bar.high is None:
        return None
    low, high = span.at(bar.low), span.at(bar.high)
    return tag("path", d=f"M{low:.1f} 8H{high:.1f}M{low:.1f} 5V11M{high:.1f} 5V11", class_="whisker")
