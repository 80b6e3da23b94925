"""The card of one traced image: the picture, and how near it is to its true class and to the wrong one at every layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from cluster.report.charts import Line, line_chart
from cluster.report.data import ReportData
from cluster.report.html import Html, tag
from cluster.report.numbers import short_number
from cluster.report.tiles import make_tile

OUTCOMES = {
    "lost": "wrong, lost for good",
    "crossed": "wrong, lost for a while",
    "never": "wrong, never ahead",
    "kept": "wrong, never lost",
    "alarm": "right, false alarm",
    "right": "right, no alarm",
}
SHARES = {"lost": 0.5, "crossed": 0.125, "never": 0.125, "kept": 0.05, "alarm": 0.125, "right": 0.075}
"""Of the cards of one trace; what one outcome does not need the others take."""
SERIES = {"truth": 2, "wrong": 1}


class Example(NamedTuple):
    """One traced image: its row of error_traces, what became of it, and role -> (layers, cosines)."""

    row: dict[str, Any]
    outcome: str
    curves: dict[str, tuple[np.ndarray, np.ndarray]]


def outcome_of(row: dict[str, Any]) -> str:
    """Key of `OUTCOMES`, of a row of error_traces that has a wrong class."""
    crossed = row["cross_layer"] is not None
    if not row["is_error"]:
        return "alarm" if crossed else "right"
    if crossed:
        return "lost" if row["persistent"] else "crossed"
    return "never" if row["max_lead"] is not None and row["max_lead"] < 0 else "kept"


def choose_traces(data: ReportData, stage: str, most: int) -> list[Example]:
    """Some images of each outcome, those with the largest lead first, with their curves."""
    rows = [row for row in data.table("error_traces", None, {"stage": stage}).to_pylist() if row["wrong"] is not None]
    by: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (-(row["max_lead"] or 0.0), row["image_index"])):
        by[outcome_of(row)].append(row)
    chosen = [(row, outcome) for outcome, share in SHARES.items() for row in by[outcome][: max(round(share * most), 1)]]
    rest = [(row, outcome) for outcome in SHARES for row in by[outcome][max(round(SHARES[outcome] * most), 1) :]]
    chosen = (chosen + rest[: max(most - len(chosen), 0)])[:most]
    curves = _load_curves(data, stage, [row["image_index"] for row, _ in chosen])
    return [Example(row, outcome, curves.get(row["image_index"], {})) for row, outcome in chosen]


def _load_curves(
    data: ReportData, stage: str, images: list[int]
) -> dict[int, dict[str, tuple[np.ndarray, np.ndarray]]]:
    if not images:
        return {}
    points: dict[tuple[int, str], list[tuple[int, float]]] = defaultdict(list)
    columns = ["image_index", "layer", "label_role", "cosine"]
    for row in data.table("layer_trace", columns, {"stage": stage, "image_index": images}).to_pylist():
        points[row["image_index"], row["label_role"]].append((row["layer"], row["cosine"]))
    found: dict[int, dict[str, tuple[np.ndarray, np.ndarray]]] = defaultdict(dict)
    for (index, role), of in points.items():
        layers, cosines = zip(*sorted(of))
        found[index][role] = (np.asarray(layers, float), np.asarray(cosines, float))
    return dict(found)


def make_trace_card(data: ReportData, number: int, title: str, example: Example) -> Html:
    """One image of trace `number`."""
    row = example.row
    words = data.pictures.words(row["image_id"])
    kind = {"right": "good", "alarm": "warm"}.get(example.outcome, "bad")
    header = tag(
        "header",
        tag("h3", tag("a", row["truth"], href=f"#t-{number}-{row['image_index']}")),
        tag("span", OUTCOMES[example.outcome], class_=f"state {kind}"),
        tag("span", f"predicted {row['predicted']} · {title}", class_="which"),
    )
    lines = [
        Line(f"{role}: {row[role]}", *example.curves[role], SERIES[role])
        for role in ("truth", "wrong")
        if role in example.curves
    ]
    marks = [
        (layer, mark) for mark, layer in (("1", row["peak_layer"]), ("2", row["cross_layer"])) if layer is not None
    ]
    picture = tag("div", make_tile(data, row["image_id"], f"Image {words}", words), class_="traced")
    told = tag("dl", (tag("div", tag("dt", word), tag("dd", value)) for word, value in _facts(row)), class_="told")
    chart = line_chart(
        f"{row['truth']} against {row['wrong']}",
        "layer",
        "cosine with the text of the label",
        lines,
        at=marks,
        from_zero=False,
    )
    searched = [row["truth"], row["wrong"], row["predicted"], words, title, OUTCOMES[example.outcome]]
    return tag(
        "article",
        header,
        picture,
        told,
        chart,
        class_="card trace",
        id=f"t-{number}-{row['image_index']}",
        tabindex="-1",
        aria_label=f"{words}: {row['truth']} against {row['wrong']}",
        data_place=number,
        data_outcome=example.outcome,
        data_words=" ".join(searched).lower(),
        data_lead=None if row["max_lead"] is None else f"{row['max_lead']:.4g}",
        data_cross=row["cross_layer"],
    )


def _facts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is marked, in words."""
    yield "truth", row["truth"]
    yield "wrong class", row["wrong"]
    if row["peak_layer"] is not None:
        yield "1: largest lead", f"{short_number(row['max_lead'])} at layer {row['peak_layer']}"
    if row["cross_layer"] is not None:
        yield "2: lost", f"at layer {row['cross_layer']}" + (", for good" if row["persistent"] else "")
