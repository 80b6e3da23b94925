"""Error traces: at which layers images lose their true class, for wrong and right ones, with single images to look at."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from cluster.amounts import count
from cluster.report import browse, tiles
from cluster.report.browse import Filter, make_browser
from cluster.report.charts import Line, line_chart
from cluster.report.columns import columns_chart
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.numbers import percent
from cluster.report.section import Section
from cluster.report.sections.trace_cards import OUTCOMES, choose_traces, make_trace_card
from cluster.report.sections.variants import place
from cluster.report.tables import Cell, Column, data_table

MOST_CARDS, MOST_OF_TRACE = 96, 16
MOST_CHARTED = 12
COLOURS = {"wrong": 1, "right": 0}
"""Series of the images that the model gets wrong, and right."""


class Trace(NamedTuple):
    """One trace: of a model by the encoders of one variant and seed; `rows` are its rows of trace_summary."""

    stage: str
    model: str
    title: str
    rows: dict[str, dict[str, Any]]


def render(data: ReportData) -> Html:
    """A table of traces, charts of each, and cards of images."""
    traces = load_traces(data)
    lead = tag("p", "At every layer an image is as near to a label as the cosine of its embedded activation with the label's text. "
               "Its lead is how much nearer it is to the truth than to the class it is, or its wrong twin is, mistaken for. Mark 1 is the "
               "layer of the largest lead; mark 2 the first layer behind it at which the wrong class leads. Images that the model gets "
               "right have a mark 2 too sometimes: a false alarm.")  # fmt: skip
    charts = [_charts(data, trace) for trace in traces[:MOST_CHARTED]]
    more = len(traces) - len(charts)
    note = (
        tag("p", f"The first {MOST_CHARTED} of {len(traces)} traces have charts.", class_="note") if more > 0 else None
    )
    return join([lead, _table(traces), charts, note, _cards(data, traces)])


SECTION = Section("traces", "Error traces", ("error_traces",), render, (*browse.ASSETS, *tiles.ASSETS, "traces.css"))


def load_traces(data: ReportData) -> list[Trace]:
    """Every trace, by model, method and seed."""
    grouped: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in data.table("trace_summary").to_pylist():
        grouped[row["stage"]][row["images_are"]] = row
    first = {stage: next(iter(rows.values())) for stage, rows in grouped.items()}
    seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
    for row in first.values():
        seeds[row["model"], row["variant"]].add(row["seed"])
    found = []
    for stage, row in first.items():
        several = len(seeds[row["model"], row["variant"]]) > 1
        title = f"{row['model']} · {row['variant']}" + (f" seed {row['seed']}" if several else "")
        found.append(
            ((row["model"], place(row["variant"]), row["seed"] or 0), Trace(stage, row["model"], title, grouped[stage]))
        )
    return [trace for _, trace in sorted(found, key=lambda item: item[0])]


def _table(traces: list[Trace]) -> Html:
    columns = [
        Column("trace"), Column("images that are"), Column("images", True),
        Column("known", True, "of them with a class to be traced against"),
        Column("lose the lead", True, "share of the known with a mark 2; of right images the false alarms"),
        Column("for good", True, "share of the known where the wrong class then leads to the last layer"),
        Column("never led", True, "share of the known with the wrong class ahead at every layer"),
    ]  # fmt: skip
    rows = []
    for trace in traces:
        for images_are in ("wrong", "right"):
            if row := trace.rows.get(images_are):
                known = row["images"] - row["unknown"]
                shares = [row["crossed_share"], _share(row["persistent"], known), _share(row["never_led"], known)]
                rows.append([trace.title, images_are, Cell(count(row["images"]), row["images"]), Cell(count(known), known),
                             *(Cell(percent(s), s) for s in shares)])  # fmt: skip
    return data_table("Traces", columns, rows, "SELECT * FROM trace_summary has all.")


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _charts(data: ReportData, trace: Trace) -> Html:
    """Where the lead is lost, where it is largest, and how it goes on average."""
    crossings, peaks = _counted(trace, "crossings"), _counted(trace, "peaks")
    charts = [
        columns_chart("Where the truth loses the lead (mark 2)", "layer", "share of known images", crossings),
        columns_chart("Where its lead is largest (mark 1)", "layer", "share of known images", peaks),
        line_chart(
            "Lead of the truth, mean over images",
            "layer",
            "cosine with truth minus with wrong",
            _leads(data, trace),
            from_zero=False,
        ),
    ]
    return join([tag("h3", trace.title), tag("div", charts, class_="charts")])


def _counted(trace: Trace, column: str) -> list[Line]:
    lines = []
    for images_are, row in trace.rows.items():
        known = row["images"] - row["unknown"]
        if known:
            shares = np.asarray(row[column], float) / known
            layers = np.asarray(row["layers"], float)
            lines.append(Line(f"{images_are} images", layers, shares, COLOURS[images_are], f"{known:,} known"))
    return sorted(lines, key=lambda line: -line.colour)


def _leads(data: ReportData, trace: Trace) -> list[Line]:
    """Mean over images of the lead at each layer, for wrong and right ones."""
    where = {"stage": trace.stage}
    table = data.table("layer_trace", ["image_index", "layer", "label_role", "cosine"], where)
    image, layer, cosine = (table[name].to_numpy() for name in ("image_index", "layer", "cosine"))
    if not len(image):
        return []
    truth = np.asarray(table["label_role"].to_pylist()) == "truth"
    key = image.astype(np.int64) * (int(layer.max()) + 1) + layer
    _, at, against = np.intersect1d(key[truth], key[~truth], return_indices=True)
    lead = cosine[truth][at].astype(float) - cosine[~truth][against]
    of = data.table("error_traces", ["image_index", "is_error"], where)
    wrong = np.isin(image[truth][at], of["image_index"].to_numpy()[of["is_error"].to_numpy(zero_copy_only=False)])
    layers = layer[truth][at]
    lines = []
    for images_are, member in (("wrong", wrong), ("right", ~wrong)):
        if member.any():
            places = np.unique(layers[member])
            means = np.array([lead[member & (layers == place)].mean() for place in places])
            lines.append(Line(f"{images_are} images", places.astype(float), means, COLOURS[images_are]))
    return lines


def _cards(data: ReportData, traces: list[Trace]) -> Html:
    each = max(min(MOST_OF_TRACE, MOST_CARDS // max(len(traces), 1)), 4)
    kept = traces[: MOST_CARDS // each]
    chosen = [(number, trace, choose_traces(data, trace.stage, each)) for number, trace in enumerate(kept)]
    data.pictures.want(example.row["image_id"] for _, _, examples in chosen for example in examples)
    cards = [
        make_trace_card(data, number, trace.title, example)
        for number, trace, examples in chosen
        for example in examples
    ]
    filters = [
        Filter("place", "Trace", [("", "all traces"), *((str(n), trace.title) for n, trace, _ in chosen)], first=True),
        Filter(
            "outcome",
            "What became of it",
            [("", "whatever became of it"), *((key, words) for key, words in OUTCOMES.items())],
        ),
    ]
    note = f"At most {each} images of each trace: most of them errors, those with the largest lead first. The tables have all."
    if len(kept) < len(traces):
        note += f" Of {len(traces)} traces the first {len(kept)} have cards."
    orders = (("chosen", "what became of them"), ("lead", "largest lead"), ("cross+", "layer of mark 2"))
    return join(
        [
            tag("h3", "Single images"),
            tag("p", note),
            make_browser(
                "Search images and classes",
                cards,
                filters,
                orders,
                rest="Cards are a choice of images; the table error_traces has all.",
            ),
        ]
    )
