"""Whether units of kindred concepts lie together: the plane of t-SNE, and the figures that say it of the whole space."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from cluster.amounts import count, some
from cluster.report.clouds import Dot, cloud_chart
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.numbers import short_number
from cluster.report.section import Section
from cluster.report.sections.places import Place, PlaceNames, place_of
from cluster.report.sections.variants import place
from cluster.report.tables import Cell, Column, data_table

MOST_CHARTS = 12
FIGURES = (
    ("units", "units", "units of exactly one group that have a direction"),
    ("groups", "groups", "groups with units"),
    ("silhouette", "silhouette", "mean under cosine distance, from -1 to 1"),
    ("silhouette_p", "p", "share of random labellings that do as well"),
    ("purity", "purity", "mean share of a unit's nearest that are of its group"),
    ("purity_chance", "by chance", "mean of purity over random labellings"),
    ("purity_p", "p of purity", "share of random labellings that do as well"),
    ("units_shared", "shared", "units of several groups, left out"),
    ("concepts_ungrouped", "ungrouped", "concepts of no group, left out"),
    ("concepts_ambiguous", "ambiguous", "concepts of several groups, left out"),
)


def render(data: ReportData) -> Html:
    """Figures of all, then a chart for each."""
    rows = sorted(data.table("geometry_summary").to_pylist(), key=_order)
    names = PlaceNames(data)
    titles = {row["stage"]: _title(row, rows, names) for row in rows}
    lead = tag("p", "Units found for concepts of one group, by direction in the space of the CLIP. A silhouette above 0 and a purity above "
               "chance say that groups lie apart; p is the share of random labellings that do as well. In the plane only what is near means "
               "something: axes and distances between clusters do not. Arrow keys walk through the points of a chart.")  # fmt: skip
    groups = sorted(data.table("geometry_points", ["group"])["group"].unique().to_pylist())
    colours = {group: number for number, group in enumerate(groups)}
    charts = tag("div", (_chart(data, row, titles, colours) for row in _charted(rows)), class_="charts")
    left = len(rows) - MOST_CHARTS
    note = tag("p", f"{left} more have figures but no chart.", class_="note") if left > 0 else None
    return join([lead, _table(rows, names), charts, note])


SECTION = Section("geometry", "Geometry", ("geometry_summary",), render)


def _charted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every place the first method's first seed, then the second method's, and so on, as many as may be; in the order of all."""
    seen: Counter[Place] = Counter()
    ranked = []
    for i, row in sorted(enumerate(rows), key=lambda item: (item[1]["seed"] or 0, item[0])):
        ranked.append((seen[place_of(row)], i))
        seen[place_of(row)] += 1
    return [rows[i] for i in sorted(i for _, i in sorted(ranked)[:MOST_CHARTS])]


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return *place_of(row).key, place(row["variant"]), row["seed"] or 0


def _title(row: dict[str, Any], rows: list[dict[str, Any]], names: PlaceNames) -> str:
    """Place and method; the seed where there are several."""
    alike = [r for r in rows if place_of(r) == place_of(row) and r["variant"] == row["variant"]]
    seed = f" seed {row['seed']}" if len(alike) > 1 and row["seed"] is not None else ""
    return f"{names.title(place_of(row))} · {row['variant']}{seed}"


def _table(rows: list[dict[str, Any]], names: PlaceNames) -> Html:
    seeds = any(row["seed"] for row in rows)
    columns = [
        Column("units of"),
        Column("method"),
        *([Column("seed", True)] if seeds else []),
        *(Column(title, True, hint) for _, title, hint in FIGURES),
    ]
    table = [
        [
            names.title(place_of(row)),
            row["variant"],
            *([_figure(row["seed"])] if seeds else []),
            *(_figure(row[name]) for name, _, _ in FIGURES),
        ]
        for row in rows
    ]
    return data_table("Geometry", columns, table, "SELECT * FROM geometry_summary has all.")


def _figure(value: float | None) -> Cell:
    if value is None:
        return Cell("–")
    return Cell(count(value) if isinstance(value, int) else short_number(value), value)


def _chart(data: ReportData, row: dict[str, Any], titles: dict[str, str], colours: dict[str, int]) -> Html:
    columns = ["unit", "group", "concept", "x", "y"]
    groups: dict[str, list[Dot]] = defaultdict(list)
    placeless = 0
    for point in data.table("geometry_points", columns, {"stage": row["stage"]}).to_pylist():
        if point["x"] is None or point["y"] is None:
            placeless += 1
            continue
        groups[point["group"]].append(
            Dot(point["x"], point["y"], f"{point['concept']} ({point['group']})\nunit #{point['unit']}")
        )
    note = f"Without a direction: {some(placeless, 'unit')}." if placeless else ""
    return cloud_chart(titles[row["stage"]], {name: groups[name] for name in sorted(groups)}, colours, note)
