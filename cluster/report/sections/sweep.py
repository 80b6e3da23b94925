"""A sweep of SAEs: how training went, which SAEs no other beats in both error and sparsity, and a table of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cluster.amounts import count
from cluster.report.charts import Line, Point, line_chart, scatter_chart
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.numbers import percent, short_number
from cluster.report.section import Section
from cluster.report.sections.saes import Group, SaeFacts, load_groups
from cluster.report.tables import Cell, Column, data_table

MOST_LINES = 16
"""Lines in one chart; SAEs beyond them are in the table."""
METRICS = ("stage", "step", "loss", "fvu", "dead")
Curves = dict[str, dict[str, np.ndarray]]


def render(data: ReportData) -> Html:
    """Charts and a table for every model and site."""
    curves = _load_curves(data)
    lead = tag(
        "p",
        "FVU is the fraction of variance that the SAE leaves unexplained, L0 how many latents are active per token; both are "
        "measured on images that training never saw. Lower is better, and each buys the other.",
    )
    return join([lead, *(_group(group, curves) for group in load_groups(data))])


SECTION = Section("saes", "Sparse autoencoders", ("sae_summary",), render)


def _load_curves(data: ReportData) -> Curves:
    """Columns of sae_metrics by stage, steps ascending."""
    table = data.table("sae_metrics", METRICS)
    stages = table["stage"].combine_chunks().dictionary_encode()
    codes = stages.indices.to_numpy()
    arrays = {name: table[name].to_numpy() for name in METRICS[1:]}
    order = np.lexsort((arrays["step"], codes))
    bounds = np.searchsorted(codes[order], np.arange(len(stages.dictionary) + 1))
    return {
        stage: {name: array[order[bounds[i] : bounds[i + 1]]].astype(float) for name, array in arrays.items()}
        for i, stage in enumerate(stages.dictionary.to_pylist())
    }


def _group(group: Group, curves: Curves) -> Html:
    shown = [sae for sae in group.saes if sae.stage in curves]
    note = f"The first {MOST_LINES} of {len(shown)} SAEs." if len(shown) > MOST_LINES else ""
    shown = shown[:MOST_LINES]
    charts = [
        _frontier(group),
        line_chart("Loss in training", "step", "loss (log)", _lines(shown, curves, "loss"), log_y=True, smooth=True, note=note),
        line_chart("FVU in training", "step", "FVU of the batch (log)", _lines(shown, curves, "fvu"), log_y=True, smooth=True, note=note),
        line_chart("Dead latents in training", "step", "latents that have not fired for long", _lines(shown, curves, "dead"), counts=True, note=note),
    ] if shown else [_frontier(group)]  # fmt: skip
    return join([group.heading(), tag("div", charts, class_="charts"), _table(group.saes)])


def _lines(saes: Sequence[SaeFacts], curves: Curves, column: str) -> list[Line]:
    return [Line(sae.name, curves[sae.stage]["step"], curves[sae.stage][column], sae.number) for sae in saes]


def _frontier(group: Group) -> Html:
    points = [
        Point(float(s.row["l0"]), float(s.row["fvu"]), s.name,
              f"{s.name}\nL0 {short_number(s.row['l0'])}, FVU {short_number(s.row['fvu'])}\ndead {percent(s.row['dead_fraction'])}", s.number)
        for s in group.saes
    ]  # fmt: skip
    spread = [p.x for p in points if p.x > 0]
    log_x = bool(spread) and max(spread) > 8 * min(spread)
    title = "FVU against L0, held-out images"
    x_title = "L0: active latents per token" + (" (log)" if log_x else "")
    return scatter_chart(title, x_title, "FVU", points, "Dashed: the SAEs that no other beats in both.", log_x=log_x)


# ---------------------------------------------------------------- the table

Figure = tuple[str, str, str, str]
"""Column of sae_summary, heading, how it is written (number or percent), and what it means."""
FIGURES: tuple[Figure, ...] = (
    ("fvu", "FVU", "number", "fraction of variance unexplained on held-out images"),
    ("l0", "L0", "number", "active latents per token"),
    ("dead_fraction", "dead", "percent", "latents that never fire on held-out images"),
    ("cosine", "cosine", "number", "mean cosine of activation and reconstruction"),
    ("l2_ratio", "norm kept", "number", "mean norm of the reconstruction over that of the activation"),
    ("recovered_mean", "loss recovered over mean", "percent", "share of the way from the site set to its mean back to the model's own loss"),
    ("recovered_zero", "loss recovered over zero", "percent", "share of the way from the site set to zero back to the model's own loss"),
    ("top1_original", "accuracy, model", "percent", "zero-shot or head accuracy of the model as it is"),
    ("top1_spliced", "accuracy, spliced", "percent", "accuracy with the site replaced by its reconstruction"),
    ("kl_spliced", "KL, spliced", "number", "divergence of the spliced model's classes from the model's own, in nats"),
    ("embedding_cosine", "embedding cosine", "number", "mean cosine of spliced and original image embeddings"),
    ("tokens", "tokens trained on", "count", "tokens seen in training"),
    ("measured_tokens", "tokens measured", "count", "held-out tokens measured"),
)  # fmt: skip
WRITTEN: dict[str, Callable[[float], str]] = {"number": short_number, "percent": percent, "count": count}


def _table(saes: Sequence[SaeFacts]) -> Html:
    """Only columns in which some SAE has a figure."""
    figures = [f for f in FIGURES if any(sae.row[f[0]] is not None for sae in saes)]
    columns = [Column("SAE"), *(Column(title, True, hint) for _, title, _, hint in figures), Column("ref")]
    rows = [
        [sae.name, *(_figure(sae.row[name], how) for name, _, how, _ in figures), tag("span", sae.ref, class_="mono")]
        for sae in saes
    ]
    return data_table("SAEs of this model and site", columns, rows, "SELECT * FROM sae_summary has all.")


def _figure(value: Any, how: str) -> Cell:
    return Cell("–") if value is None else Cell(WRITTEN[how](value), float(value))
