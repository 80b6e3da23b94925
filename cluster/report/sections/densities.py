"""How often and how strongly latents fire, and how far their directions agree: an SAE's whole dictionary at a glance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.amounts import count
from cluster.report.charts import Line, grid_chart, step_chart
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.scales import Scale, make_scale
from cluster.report.section import Section
from cluster.report.sections.saes import Described, load_described

COLUMNS = [
    "stage",
    "feature",
    "density",
    "is_dead",
    "max",
    "enc_dec_cos",
    "neighbour_cos",
    "clarity",
    "monosemanticity",
]
MOST_LINES = 16
MOST_GRIDS = 12


class Dictionary(NamedTuple):
    """All latents of one SAE; NaN where a figure is not known."""

    sae: Described
    alive: np.ndarray
    figures: dict[str, np.ndarray]


def render(data: ReportData) -> Html:
    """Histograms over all SAEs of a model and site, then density against strength for each."""
    lead = tag("p", "Density is the share of tokens on which a latent is active. A healthy dictionary has few latents that "
               "are always on, few that never fire, and few whose nearest neighbour points the same way. Histograms are over the latents that fire.")  # fmt: skip
    described = load_described(data)
    groups = [list(of) for _, of in groupby(described, key=lambda d: (d.model, d.site))]
    return join([lead, *(_group(data, group) for group in groups)])


SECTION = Section("densities", "Densities", ("sae_features",), render)


def _group(data: ReportData, saes: Sequence[Described]) -> Html:
    shown = [_load(data, sae) for sae in saes[:MOST_LINES]]
    note = f"The first {MOST_LINES} of {count(len(saes))} SAEs." if len(saes) > MOST_LINES else ""
    density = np.concatenate([d.figures["density"][d.alive] for d in shown]) if shown else np.empty(0)
    low = 10.0 ** np.floor(np.log10(density.min())) if len(density) else 1e-6
    freely = Scale("share of tokens on which a latent is active (log)", min(low, 0.1), 1.0, log=True)
    spread = np.geomspace(freely.low, 1, bins(shown) + 1)
    charts = [
        step_chart("How often latents fire", freely, "latents", spread,
                   [_counted(d, "density", spread, _dead) for d in shown], note),
        _cosines("Encoder and decoder rows", "cosine of a latent's two rows", "enc_dec_cos", shown, note),
        _cosines("Nearest neighbour", "cosine with the nearest other decoder row", "neighbour_cos", shown, note),
        _cosines("Monosemanticity", "weighted mean cosine of the images that activate a latent", "monosemanticity", shown, note),
        _cosines("Clarity", "mean cosine of a latent's top images", "clarity", shown, note),
        *_strengths(shown[:MOST_GRIDS]),
    ]  # fmt: skip
    heading = tag("h3", saes[0].model, " ", tag("code", saes[0].site))
    return join([heading, tag("div", charts, class_="charts")])


def bins(shown: Sequence[Dictionary]) -> int:
    """More of them the more latents there are: twice the cube root (Rice's rule), at least 12 and at most 48."""
    return min(max(round(2 * max(len(d.alive) for d in shown) ** (1 / 3)), 12), 48)


def _load(data: ReportData, sae: Described) -> Dictionary:
    table = data.table("sae_features", COLUMNS, {"stage": sae.stage})
    figures = {name: table[name].cast(pa.float64()).to_numpy() for name in ("density", "max", "enc_dec_cos", "clarity", "monosemanticity")}  # fmt: skip
    figures["neighbour_cos"] = _first(table["neighbour_cos"])
    return Dictionary(sae, ~table["is_dead"].to_numpy(), figures)


def _first(lists: pa.ChunkedArray) -> np.ndarray:
    """The first element of each list; NaN of an empty one."""
    out = np.full(len(lists), np.nan)
    there = pc.greater(pc.list_value_length(lists), 0).to_numpy()
    out[there] = pc.list_element(lists.filter(pa.array(there)), 0).to_numpy()
    return out


def _dead(dictionary: Dictionary) -> str:
    dead = int((~dictionary.alive).sum())
    return f"{count(dead)} of {count(len(dictionary.alive))} never fire" if dead else ""


def _counted(of: Dictionary, name: str, edges: np.ndarray, remark: Callable[[Dictionary], str] | None = None) -> Line:
    values = of.figures[name][of.alive]
    counts, _ = np.histogram(values[np.isfinite(values)], edges)
    return Line(of.sae.name, edges, counts.astype(float), of.sae.number, remark(of) if remark else "")


def _cosines(title: str, x_title: str, name: str, shown: Sequence[Dictionary], note: str) -> Html | None:
    """Left out where nobody knows the figure."""
    values = np.concatenate([d.figures[name][d.alive] for d in shown])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low = np.floor(values.min() * 10 + 1e-9) / 10
    edges = np.linspace(min(low, 0.9), 1.0, bins(shown) + 1)
    x = Scale(x_title, float(edges[0]), 1.0)
    return step_chart(title, x, "latents", edges, [_counted(d, name, edges) for d in shown], note)


def _strengths(shown: Sequence[Dictionary]) -> list[Html]:
    """One chart for each, over the same axes, so that they can be compared."""
    points = [(d.figures["density"][d.alive], d.figures["max"][d.alive]) for d in shown]
    x = make_scale("density (log)", np.concatenate([density for density, _ in points]), log=True)
    y = make_scale("largest code (log)", np.concatenate([largest for _, largest in points]), log=True)
    return [
        grid_chart(f"How often against how strongly: {d.sae.name}", x, y, density, largest, d.sae.number)
        for d, (density, largest) in zip(shown, points)
    ]
