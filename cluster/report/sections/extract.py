"""What was extracted: for every site of every model, how its units are spread over mean, spread and activity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.amounts import count
from cluster.report.data import ReportData
from cluster.report.html import Html, tag
from cluster.report.numbers import percent, short_number
from cluster.report.section import Section
from cluster.report.tables import Cell, Column, data_table

COLUMNS = ("model", "site", "n", "mean", "variance", "min", "max", "positive")
SILENT = 1e-12
"""A unit whose variance is below this does not vary."""


def render(data: ReportData) -> Html:
    """One row per model and site, over its units."""
    moments = data.table("activation_moments", COLUMNS)
    columns = [
        Column("model"), Column("site"), Column("units", True), Column("values", True, "images times positions, for each unit"),
        Column("median mean", True, "median over units of their mean"),
        Column("median spread", True, "median over units of their standard deviation"),
        Column("mean ÷ spread", True, "length of the mean over length of the spread: far above 1, a few units dwarf the rest"),
        Column("smallest", True), Column("largest", True),
        Column("positive", True, "median over units of the share of values above zero"),
        Column("constant units", True),
    ]  # fmt: skip
    lead = tag("p", "Activations as the model has them; each figure is over the units of a site.")
    return tag("div", lead, data_table("Sites", columns, [_row(*group) for group in _groups(moments)]))


SECTION = Section("extract", "Activations", ("activation_moments",), render)


def _groups(moments: pa.Table) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    models, sites = (moments[name].combine_chunks().dictionary_encode() for name in ("model", "site"))
    arrays = {name: moments[name].to_numpy() for name in COLUMNS[2:]}
    codes = models.indices.to_numpy() * len(sites.dictionary) + sites.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    found, starts = np.unique(codes[order], return_index=True)
    for code, rows in zip(found.tolist(), np.split(order, starts[1:])):
        model, site = divmod(code, len(sites.dictionary))
        yield models.dictionary[model].as_py(), sites.dictionary[site].as_py(), {n: a[rows] for n, a in arrays.items()}


def _row(model: str, site: str, of: dict[str, np.ndarray]) -> list[Any]:
    spread = np.sqrt(np.maximum(of["variance"], 0))
    length = float(np.linalg.norm(spread))
    constant = int((of["variance"] < SILENT).sum())
    figures = [
        np.median(of["mean"]), np.median(spread), np.linalg.norm(of["mean"]) / length if length else np.nan,
        of["min"].min(), of["max"].max(),
    ]  # fmt: skip
    positive = float(np.median(of["positive"]))
    return [
        model,
        tag("span", site, class_="mono"),
        Cell(count(len(spread)), len(spread)),
        Cell(count(of["n"].max()), int(of["n"].max())),
        *(Cell(short_number(float(v)), float(v)) for v in figures),
        Cell(percent(positive), positive),
        Cell(count(constant), constant),
    ]
