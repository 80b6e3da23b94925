"""How good texts are by every measure with intervals and controls, which differences are real, how alphas were chosen, and agreement."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cluster.amounts import count, some
from cluster.report import bars
from cluster.report.bars import Bar, bar_cell, make_span
from cluster.report.charts import Line, line_chart
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.numbers import percent, short_number
from cluster.report.section import Section
from cluster.report.sections.explain_tests import LEVEL, Contests
from cluster.report.sections.explained import Explained, load_explained
from cluster.report.sections.settings import Settings
from cluster.report.sections.ways import COLOURS, Ways, is_control, say_method, way_of
from cluster.report.tables import Cell, Column, data_table
from jobs.explained import Variant

MOST_BLOCKS = 8
MEASURES = {
    "iou": ("IoU", "mean over features of how well the text finds where the feature is active in images that it was not made from"),
    "clip": ("CLIP", "mean cosine of the text and what the feature is active on, in the space of the CLIP"),
    "synthetic": ("synthetic", "mean activation of the feature on images made from the text, as in the model"),
    "auroc_macro": ("AUROC", "mean over features: images made from the text against random ones"),
    "auroc_pooled": ("AUROC pooled", "activations of all features in one, which mixes features of different scales"),
    "named": ("named", "share of texts with the name of the concept that the feature tells best"),
}  # fmt: skip
"""Measure -> its short name and what it says, in the order of the columns."""
FURTHER = ("precision", "recall")
Rows = list[dict[str, Any]]


def render(data: ReportData) -> Html:
    """For every SAE and model that wrote: words, the table, curves."""
    found = load_explained(data)
    lead = tag("p", "Every column is larger for better texts. Bars are means over the same features with 95 % intervals (bootstrap over features, Wilson's "
               "for names); features without a text (empty, refused, not finite) have no score and are counted. Controls steer with a direction that is not the feature's, or "
               f"with nothing: what a text owes to the feature is what is above them. One method beats another if a paired Wilcoxon test over the features that "
               f"both have a text for says so after Holm's correction over all measures (p below {LEVEL}).")  # fmt: skip
    blocks = [_block(data, one) for one in found[:MOST_BLOCKS]]
    left = len(found) - MOST_BLOCKS
    note = tag("p", f"{left} more are in the tables.", class_="note") if left > 0 else None
    return join([lead, *blocks, note])


SECTION = Section(
    "explained", "Explanations: scores", ("explanation_summary", "explanation_alphas"), render, (*bars.ASSETS, "units.css", "explain.css")
)  # fmt: skip


def _block(data: ReportData, one: Explained) -> Html:
    title = tag("h3", one.title)
    if one.summary is None:
        none = tag("p", "Nobody has scored these texts yet: that is what score_explanations is for.", class_="none")
        return join([title, none, _alphas(data, one)])
    rows = data.table("explanation_summary", None, {"stage": one.summary}).to_pylist()
    if not rows:
        return join([title, tag("p", "No feature was scored.", class_="none"), _alphas(data, one)])
    contests = Contests(data.table("explanation_tests", None, {"stage": one.summary}).to_pylist())
    said = [*_verdicts(contests, rows), *_choices(data, one)]
    return join(
        [
            title,
            tag("ul", (tag("li", words) for words in said), class_="verdicts"),
            _scores(one, rows),
            _alphas(data, one),
            _agreement(data, one),
            contests.table(f"Tests on {one.title}"),
        ]
    )


# ---------------------------------------------------------------- means


def _scores(one: Explained, rows: Rows) -> Html:
    by_way: dict[Variant, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_way[way_of(row)][row["metric"]] = row
    ways = Ways([*by_way, *one.stages])
    shown = [m for m in MEASURES if any(m in of for of in by_way.values())]
    made = {m: {way: _bar(of.get(m)) for way, of in by_way.items()} for m in shown}
    spans = {m: make_span([bar for bar in made[m].values() if bar]) for m in shown}
    best = {m: _leader(made[m]) for m in shown}
    further = [m for m in FURTHER if any(m in of for of in by_way.values())]
    columns = [
        Column("texts by"),
        *(Column(MEASURES[m][0], True, MEASURES[m][1]) for m in shown),
        *(Column(m, True, {"precision": "share of what the text finds that is the feature's", "recall": "share of the feature's that the text finds"}[m]) for m in further),
        Column("without text", True, "features whose text is empty, refused or not finite"),
    ]  # fmt: skip
    table = []
    for way in ways.ways:
        if way not in by_way:
            continue
        of = by_way[way]
        cells = [
            bar_cell(bar, spans[m], ways.colour(way), _say(m, bar.value), way == best[m], _remark(m, of))
            if (bar := made[m][way])
            else Cell("–")
            for m in shown
        ]
        empty = max(row["n_empty"] for row in of.values())
        more = [_number(of[m]["value"] if m in of else None) for m in further]
        table.append([Cell(ways.label(way), ways.name(way)), *cells, *more, Cell(count(empty), empty)])
    return tag("div", data_table(f"Scores of {one.title}", columns, table), class_="explained-scores")


def _bar(row: Mapping[str, Any] | None) -> Bar | None:
    return None if row is None or row["value"] is None else Bar(row["value"], row["low"], row["high"])


def _say(metric: str, value: float) -> str:
    return percent(value) if metric == "named" else short_number(value)


def _leader(made: Mapping[Variant, Bar | None]) -> Variant | None:
    """The way with the largest value; controls take no part."""
    taking_part = {way: bar.value for way, bar in made.items() if bar and not is_control(way)}
    return max(taking_part, key=lambda way: taking_part[way]) if len(taking_part) > 1 else None


def _remark(metric: str, of: Mapping[str, dict[str, Any]]) -> str:
    """The interval, of how many features, and of names what a blind guess would hit."""
    row = of[metric]
    words = []
    if row["low"] is not None and row["high"] is not None:
        words.append(f"{_say(metric, row['low'])} to {_say(metric, row['high'])}")
    words.append(f"n {row['n']:,}")
    blind = of.get("share_named") if metric == "named" else None
    if blind and blind["value"] is not None:
        words.append(f"blind {percent(blind['value'])}")
    return ", ".join(words)


def _number(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(short_number(value), value)


# ---------------------------------------------------------------- in words


def _verdicts(contests: Contests, rows: Rows) -> list[str]:
    """Who beats whom, by every measure that is tested and every masking."""
    groups = {masking for masking, _ in contests.groups}
    found = []
    for masking, metric in contests.groups:
        within = f" ({masking})" if len(groups) > 1 else ""
        found.append(f"{MEASURES[metric][0]}{within}: {contests.verdict(masking, metric)}")
    return found


def _choices(data: ReportData, one: Explained) -> list[str]:
    """How often each method was chosen, and how many of the chosen texts pass."""
    table = data.table("selected_explanations", ["stage", "vote", "method", "passed"], {"stage": one.summary})
    votes: dict[str, Rows] = defaultdict(list)
    for row in table.to_pylist():
        votes[row["vote"]].append(row)
    found = []
    for vote in sorted(votes, reverse=True):
        rows, within = votes[vote], f" ({vote})" if len(votes) > 1 else ""
        times = Counter(row["method"] for row in rows).most_common()
        shares = ", ".join(f"{say_method(method)} for {percent(n / len(rows))}" for method, n in times)
        passed = sum(row["passed"] for row in rows)
        found.append(f"chosen text{within}: {shares} of {some(len(rows), 'feature')}; {passed:,} of them pass.")
    return found


# ---------------------------------------------------------------- curves


def _alphas(data: ReportData, one: Explained) -> Html | None:
    """IoU and different texts against alpha, and the table behind them."""
    if not data.has("explanation_alphas"):
        return None
    rows = data.table("explanation_alphas", None, {"model": one.place.model, "site": one.place.site, "vlm": one.vlm}).to_pylist()  # fmt: skip
    rows = sorted((row for row in rows if row["sae"] == one.place.sae), key=lambda row: row["alpha"])
    if not rows:
        return None
    grids: dict[str, dict[tuple[Variant, str], Rows]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        grids[row["alpha_unit"]][way_of(row), row["stage"]].append(row)
    ways = Ways(way for of in grids.values() for way, _ in of)
    told = _tell_choices(data, [key for of in grids.values() for key in of])
    charts = [chart for unit, of in grids.items() for chart in _alpha_charts(unit, of, ways, told)]
    columns = [
        Column("texts by"), Column("alpha", True), Column("mean IoU", True), Column("sd", True, "over features"),
        Column("different texts", True, "over all texts: near 0 where steering drowns out everything"),
        Column("features", True, "with a text"), Column("without text", True), Column("chosen"),
    ]  # fmt: skip
    table = [
        [_choice_cell(way_of(row), told[row["stage"]], ways), _number(row["alpha"]), _number(row["mean_iou"]), _number(row["sd_iou"]),
         Cell(percent(row["distinct"]), row["distinct"]), Cell(count(row["n"]), row["n"]), Cell(count(row["n_empty"]), row["n_empty"]),
         tag("span", "chosen", class_="state good") if row["is_chosen"] else ""]
        for row in rows
    ]  # fmt: skip
    every = tag(
        "details", tag("summary", "All alphas that were tried"), data_table(f"Alphas of {one.title}", columns, table)
    )
    return join([tag("h4", "How strongly to steer"), tag("div", charts, class_="charts"), every])


def _tell_choices(data: ReportData, choices: Iterable[tuple[Variant, str]]) -> dict[str, str]:
    """Stage that chose an alpha -> what tells it from others of the same way: settings, else its name in the spec."""
    by_way: dict[Variant, list[str]] = defaultdict(list)
    for way, stage in choices:
        by_way[way].append(stage)
    settings = Settings(data)
    return {s: words for of in by_way.values() for s, words in zip(of, settings.tell(of), strict=True)}


def _choice_cell(way: Variant, told: str, ways: Ways) -> Cell:
    remark = tag("span", f" {told}", class_="remark") if told else None
    return Cell(join([ways.label(way), remark]), f"{ways.name(way)} {told}")


def _alpha_charts(unit: str, of: Mapping[tuple[Variant, str], Rows], ways: Ways, told: Mapping[str, str]) -> list[Html]:
    x_title = f"alpha, in {unit.replace('_', ' ')}s" if unit == "token_norm" else f"alpha × {unit}"
    log = all(row["alpha"] > 0 for rows in of.values() for row in rows)
    note = "A dot is the alpha that was chosen: the best mean IoU over the validation features."
    charts = []
    for name, title, y_title in (
        ("mean_iou", "IoU against alpha", "mean IoU over validation features"),
        ("distinct", "Different texts against alpha", "different texts, as a share of all"),
    ):
        lines = [_alpha_line(way, rows, name, ways, told[stage]) for (way, stage), rows in of.items()]
        charts.append(line_chart(title, x_title, y_title, lines, note=note if name == "mean_iou" else "", steps=False, log_x=log, counts=False))  # fmt: skip
    return charts


def _alpha_line(way: Variant, rows: Rows, name: str, ways: Ways, told: str) -> Line:
    chosen = tuple(row["alpha"] for row in rows if row["is_chosen"])
    remark = f"alpha {short_number(chosen[0])}" if chosen else ""
    x, y = (np.array([np.nan if row[n] is None else row[n] for row in rows], dtype=float) for n in ("alpha", name))
    return Line(", ".join(filter(None, (ways.name(way), told))), x, y, ways.colour(way), remark, chosen)


def _agreement(data: ReportData, one: Explained) -> Html | None:
    """Every measure against how well the texts of topk and steering agree, with the number of features left."""
    rows = data.table("explanation_agreement", None, {"stage": one.summary}).to_pylist()
    if not rows:
        return None
    maskings = sorted({row["masking"] for row in rows}, reverse=True)
    charts = []
    for masking in maskings:
        of = [row for row in rows if row["masking"] == masking]
        within = f", {masking}" if len(maskings) > 1 else ""
        for metric in (m for m in MEASURES if any(row["metric"] == m for row in of)):
            title = f"{MEASURES[metric][0]} where texts agree{within}"
            some_rows = [row for row in of if row["metric"] == metric]
            charts.append(_agreement_chart(title, MEASURES[metric][0], some_rows, "value"))
        charts.append(_agreement_chart(f"Features left{within}", "features", [r for r in of if r["metric"] == of[0]["metric"]], "n"))  # fmt: skip
    lead = "Features whose Top-k and Steering texts have at least the cosine on the axis. Few are left on the right, where a mean says little."
    return join([tag("h4", "Where two methods agree"), tag("p", lead), tag("div", charts, class_="charts")])


def _agreement_chart(title: str, y_title: str, rows: Rows, name: str) -> Html:
    by_method: dict[tuple[str, str], Rows] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["threshold"]):
        masking = row["masking"] if row["method"] != "steering" else "none"
        by_method[row["method"], masking].append(row)
    lines = []
    for key, of in by_method.items():
        x, y = (
            np.array([np.nan if row[n] is None else row[n] for row in of], dtype=float) for n in ("threshold", name)
        )
        lines.append(Line(say_method(*key), x, y, COLOURS.get(key, len(COLOURS))))
    return line_chart(title, "least cosine of both texts", y_title, lines, steps=False, counts=name == "n")
