"""All texts in a plane, coloured by cluster, with what clusters are called; a point leads to the card of its feature."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cluster.amounts import count, some
from cluster.report import browse
from cluster.report.colours import N_SERIES, series_class
from cluster.report.data import ReportData
from cluster.report.frame import empty_chart, px
from cluster.report.html import Html, join, script_json, tag
from cluster.report.scales import make_scale
from cluster.report.section import Section
from cluster.report.sections.explained import Explained, load_explained
from cluster.report.sections.places import Place, PlaceNames
from cluster.report.tables import Cell, Column, data_table
from schemas.plans import StageSpec

MOST_MAPS = 6
MAP_BYTES = 2_000_000
"""What all points with their texts may take; more are thinned evenly, cluster by cluster."""
POINT_BYTES = 26
"""Of a point beside its text."""
WIDE, HIGH, ROOM = 900, 560, 16
SIZES = ((400, 9.0), (2000, 6.5), (6000, 5.0))
"""(points, how large they are drawn)."""
SMALLEST = 3.5
MARKS = ("", "square", "ring", "square ring")
"""Shapes of the first eight clusters, of the next eight, and so on."""
LETTER, ABOVE = 7.6, 9.0
"""How wide a letter of a name is, and how far above the middle of a cluster its name stands."""
SAMPLES = 4
COLUMNS = ["cluster", "feature", "vlm", "text", "x", "y"]


class Map(NamedTuple):
    """The points of one map stage, and its clusters by number."""

    number: int
    title: str
    points: pa.Table
    clusters: list[dict[str, Any]]
    who: dict[str, int]
    """Vision-language model -> number of the explained features that its texts are about."""


def render(data: ReportData) -> Html:
    """For every map the plane, then its clusters as a table."""
    stages = [p.stage for p in data.stages.values() if (p.stage.kind, p.stage.output) == ("map_explanations", "map")]
    stages.sort(key=lambda s: (_place(s).key, s.digest))
    explained = load_explained(data)
    maps = [_load(data, n, stage, explained) for n, stage in enumerate(stages[:MOST_MAPS])]
    lead = tag("p", "Each point is a text about a feature; near are texts that mean the same to the encoder. Clusters were found in the whole space, not in the plane, "
               "and are named after what their texts say. Pointing at a point says its text, a click leads to the card of its feature; arrow keys walk "
               "from point to point, and Enter goes there.")  # fmt: skip
    left = len(stages) - len(maps)
    note = tag("p", f"{some(left, 'map')} more in the table explanation_map.", class_="note") if left > 0 else None
    return join([lead, *(_shown(one, MAP_BYTES // max(len(maps), 1)) for one in maps), note])


SECTION = Section("textmap", "Explanations: map", ("explanation_map",), render, (*browse.ASSETS, "explain.css", "explain.js"))  # fmt: skip


def _place(stage: StageSpec) -> Place:
    return Place(stage.subject, str(stage.params["site"]), f"sae:{stage.inputs['sae']}")


def _load(data: ReportData, number: int, stage: StageSpec, explained: Sequence[Explained]) -> Map:
    points = data.table("explanation_map", COLUMNS, {"stage": stage.digest}).sort_by([("cluster", "ascending"), ("feature", "ascending")])  # fmt: skip
    clusters = data.table("explanation_clusters", None, {"stage": stage.digest}).sort_by("cluster").to_pylist()
    read = set(stage.inputs.values())
    who: dict[str, int] = {}
    for one in (o for o in explained if o.place == _place(stage)):
        if one.vlm not in who or one.summary in read:
            who[one.vlm] = one.number
    what = {"selected": "chosen texts", "all": "all texts"}.get(str(stage.params.get("texts")), "texts")
    return Map(number, f"{PlaceNames(data).title(_place(stage))} · {what}", points, clusters, who)


def _shown(one: Map, budget: int) -> Html:
    title = tag("h3", one.title)
    if not len(one.points):
        return join([title, empty_chart(one.title, "No feature has a text.")])
    return join([title, _plane(one, budget), _table(one)])


# ---------------------------------------------------------------- the plane


def _plane(one: Map, budget: int) -> Html:
    xs, ys = (one.points[name].to_numpy().astype(float) for name in ("x", "y"))
    at_x = make_scale("", xs).place(xs, ROOM, WIDE - ROOM)
    at_y = make_scale("", ys).place(ys, HIGH - ROOM, ROOM)
    there = np.isfinite(at_x) & np.isfinite(at_y)
    if not there.any():
        return empty_chart(one.title, "No text has a place.")
    cluster = one.points["cluster"].to_numpy()
    every = _every(one.points["text"].to_pylist(), budget)
    rows = {int(c): np.flatnonzero((cluster == c) & there)[::every] for c in np.unique(cluster[there])}
    size = next((size for most, size in SIZES if sum(map(len, rows.values())) <= most), SMALLEST)
    named = {row["cluster"]: row for row in one.clusters}
    groups = [_group(n, c, at_x[i], at_y[i], size) for n, (c, i) in enumerate(rows.items())]
    labels = _labels([(n, named[c]["topic"], at_x[i], at_y[i]) for n, (c, i) in enumerate(rows.items()) if c in named])
    told = f"Map of {some(len(xs), 'text')} in {some(len(rows), 'cluster')}: {one.title}"
    svg = tag(
        "svg", tag("g", groups, labels, class_="marks"), tag("circle", class_="here", r=px(size), hidden=True),
        viewBox=f"0 0 {WIDE} {HIGH}", role="img", aria_label=told, tabindex="0",
    )  # fmt: skip
    note = "Places along the axes mean nothing. A name hides its cluster."
    if every > 1:
        note += f" One of {every} points is drawn."
    return tag(
        "figure",
        tag("div", svg, script_json(_told(one, rows, at_x, at_y), class_="texts"), class_="plot"),
        _legend(rows, named, cluster),
        tag("p", note, class_="note"),
        class_="chart textmap",
        id=f"textmap-{one.number}",
    )


def _every(texts: Sequence[str], budget: int) -> int:
    """One of how many points is drawn so that they stay in the budget."""
    size = len(texts) * POINT_BYTES + sum(len(text.encode()) + 3 for text in set(texts))
    return -(-size // budget)


def _group(number: int, cluster: int, xs: np.ndarray, ys: np.ndarray, size: float) -> Html:
    """All points of a cluster as one path of strokes without length."""
    path = "".join(f"M{px(x)} {px(y)}h0" for x, y in zip(xs.tolist(), ys.tolist()))
    return tag("g", _strokes(path, cluster, size), class_=series_class(cluster), data_series=number)


def _strokes(path: str, cluster: int, size: float) -> list[Html]:
    shape = MARKS[cluster // N_SERIES % len(MARKS)]
    square = " square" if "square" in shape else ""
    width = size * (0.85 if square else 1)
    drawn = [tag("path", d=path, class_=f"spots{square}", stroke_width=px(width))]
    if "ring" in shape:
        drawn.append(tag("path", d=path, class_=f"spots hole{square}", stroke_width=px(width * 0.45)))
    return drawn


def _labels(clusters: Sequence[tuple[int, str, np.ndarray, np.ndarray]]) -> list[Html]:
    """What clusters are called, above their middles, as far as there is room; the largest have first choice.

    clusters: (number of the series, topic, x, y).
    """
    taken: list[tuple[float, float, float, float]] = []
    labels = []
    for number, topic, xs, ys in sorted(clusters, key=lambda cluster: -len(cluster[2])):
        half = LETTER * len(topic) / 2
        x, y = min(max(float(np.median(xs)), half), WIDE - half), max(float(np.median(ys)) - ABOVE, ROOM)
        box = (x - half, y - 12, x + half, y + 4)
        if any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken):
            continue
        taken.append(box)
        text = tag("text", topic, x=px(x), y=px(y), text_anchor="middle", class_="name")
        labels.append(tag("g", text, data_series=number))
    return labels


def _told(one: Map, rows: Mapping[int, np.ndarray], at_x: np.ndarray, at_y: np.ndarray) -> dict[str, Any]:
    """For the script: of each cluster its name and its points as x, y, feature, text and whose."""
    texts: dict[str, int] = {}
    features, said, models = (one.points[name].to_pylist() for name in ("feature", "text", "vlm"))
    named = {row["cluster"]: row["topic"] for row in one.clusters}
    clusters = []
    for c, places in rows.items():
        flat: list[float] = []
        for i in places.tolist():
            text = texts.setdefault(said[i], len(texts))
            flat += [round(float(at_x[i]), 1), round(float(at_y[i]), 1), features[i], text, one.who.get(models[i], -1)]
        clusters.append({"topic": named.get(c, f"cluster {c}"), "points": flat})
    return {"texts": list(texts), "clusters": clusters}


def _legend(rows: Mapping[int, np.ndarray], named: Mapping[int, dict[str, Any]], cluster: np.ndarray) -> Html:
    """Buttons that hide and show a cluster; pointing at one dims the others."""
    items = []
    for number, c in enumerate(rows):
        swatch = tag("svg", _strokes("M9 5h0", c, 8), viewBox="0 0 18 10", width=18, height=10, aria_hidden="true")
        topic = named[c]["topic"] if c in named else f"cluster {c}"
        size = tag("span", count(int((cluster == c).sum())), class_="remark")
        button = tag("button", swatch, topic, size, type="button", aria_pressed="true", data_series=number, class_=series_class(c))  # fmt: skip
        items.append(tag("li", button))
    return tag("ul", items, class_="legend")


# ---------------------------------------------------------------- clusters


def _table(one: Map) -> Html:
    columns = [Column("cluster"), Column("texts", True), Column("for example")]
    rows = []
    for row in one.clusters:
        samples: dict[str, list[int]] = defaultdict(list)
        for feature, text in zip(row["sample"], row["sample_texts"], strict=True):
            samples[text].append(feature)
        said = [f"{text} ({', '.join(f'#{f}' for f in of[:SAMPLES])}{' …' if len(of) > SAMPLES else ''})" for text, of in list(samples.items())[:SAMPLES]]  # fmt: skip
        number = next(iter(one.who.values()), -1)
        link = tag("a", row["topic"], href="#explanations", data_show_cluster=f"{number}-{row['cluster']}", title="Cards of this cluster")  # fmt: skip
        rows.append([Cell(link, row["topic"]), Cell(count(row["size"]), row["size"]), "; ".join(said)])
    return data_table(f"Clusters of {one.title}", columns, rows, "SELECT * FROM explanation_clusters has all.")
