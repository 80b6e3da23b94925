"""Neuron encoders: how their training went, and a table of their settings and ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from cluster.amounts import count
from cluster.report.charts import Line, line_chart
from cluster.report.colours import N_SERIES
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.numbers import short_number
from cluster.report.section import Section
from cluster.report.tables import Cell, Column, data_table
from schemas.align_specs import loss_name

MOST_LINES, MOST_SITES = 16, 12
WORDS = {"logit_scale": "scale {:.3g}", "lr": "lr {:g}", "seed": "seed {}", "pool": "{} pool", "clip": "{}"}
"""Settings beside the loss that may tell encoders of one site apart, and how a name says them."""


def render(data: ReportData) -> Html:
    """For each model the losses at each of its sites, then a table of all."""
    rows = data.table("alignments").to_pylist()
    rows.sort(key=lambda r: (r["model"], r["site"], loss_of(r), r["logit_scale"], r["lr"], r["seed"], r["encoder"]))
    lead = tag("p", "An encoder maps the activations of one site into the space of a CLIP. It is drawn towards the texts of the classes "
               "that the model predicts (out) and the embeddings of the images (in). At a logit scale of 1 each loss of a batch of B starts near "
               "log B and can fall by about 1, so that small differences mean much.")  # fmt: skip
    sites = [list(of) for _, of in groupby(rows, key=lambda r: (r["model"], r["site"]))]
    charts = tag("div", (_chart(data, of) for of in sites[:MOST_SITES]), class_="charts")
    left = len(sites) - MOST_SITES
    note = tag("p", f"The first {MOST_SITES} of {len(sites)} sites have charts.", class_="note") if left > 0 else None
    return join([lead, charts, note, _table(rows)])


SECTION = Section("encoders", "Neuron encoders", ("alignments",), render)


def loss_of(row: dict[str, Any]) -> str:
    """in+out, in or out, by the weights."""
    return loss_name(row["w_out"], row["w_in"])


def names_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What tells encoders of one site apart; of those that differ in nothing else, the start of the ref as well."""
    fields = [field for field in WORDS if len({row[field] for row in rows}) > 1]
    names = [" ".join([loss_of(row), *(WORDS[field].format(row[field]) for field in fields)]) for row in rows]
    return [n if names.count(n) == 1 else f"{n} {row['encoder'][:12]}" for n, row in zip(names, rows)]


def colours_of(rows: Sequence[dict[str, Any]]) -> list[int]:
    """One colour for encoders that differ in their seed alone, with another dash for each seed."""
    settings = [tuple(row[f] for f in ("w_out", "w_in", *WORDS) if f != "seed") for row in rows]
    different, seeds = list(dict.fromkeys(settings)), sorted({row["seed"] for row in rows})
    if len(different) > N_SERIES:
        return list(range(len(rows)))
    return [different.index(of) + N_SERIES * seeds.index(row["seed"]) for of, row in zip(settings, rows)]


def full_batches(step: np.ndarray, images: int, batch: int) -> np.ndarray:
    """Which steps had a whole batch: the last of an epoch has what is left, and a smaller loss because of that."""
    each = -(-images // batch)
    return (step % each != each - 1) | (images % batch == 0)


def _chart(data: ReportData, rows: Sequence[dict[str, Any]]) -> Html:
    shown = rows[:MOST_LINES]
    stages = [row["encoder"].removeprefix("align:") for row in shown]
    steps: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in data.table("align_metrics", ["stage", "step", "loss"], {"stage": stages}).to_pylist():
        steps[row["stage"]].append((row["step"], row["loss"]))
    lines, left_out = [], False
    for stage, name, colour, row in zip(stages, names_of(rows), colours_of(rows), shown):
        if steps[stage]:
            step, loss = np.asarray(sorted(steps[stage]), float).T
            images = row["images"] - row["images_held_out"]
            whole = full_batches(step, images, row["batch"]) | _drops_last(data, stage)
            left_out |= not whole.all()
            lines.append(Line(name, step[whole], loss[whole], colour))
    notes = [
        f"The first {MOST_LINES} of {len(rows)} encoders." if len(rows) > MOST_LINES else "",
        "Without the last step of each epoch, whose batch is smaller." if left_out else "",
    ]
    title = f"Loss at {rows[0]['model']} {rows[0]['site']}"
    return line_chart(title, "step", "loss, nats", lines, smooth=True, note=" ".join(filter(None, notes)))


def _drops_last(data: ReportData, stage: str) -> bool:
    """Whether epochs ended with their last whole batch."""
    published = data.stages.get(stage)
    settings: Any = published.stage.params.get("align") if published else None
    return bool(settings and settings.get("drop_last"))


def _table(rows: Sequence[dict[str, Any]]) -> Html:
    columns = [
        Column("model"), Column("site"), Column("loss"), Column("scale", True, "what multiplies cosines at the end"), Column("lr", True),
        Column("seed", True), Column("images", True, "with everything that it learns from"), Column("classes", True),
        Column("steps", True, "updates of the weights that are kept"), Column("loss at the end", True, "mean over the last tenth of the steps"),
        Column("out", True, "of it towards class texts"), Column("in", True, "of it towards image embeddings"),
        Column("CLIP"), Column("silent channels", True, "0 on every image; told if they are more than half"), Column("ref"),
    ]  # fmt: skip
    table = [
        [r["model"], tag("span", r["site"], class_="mono"), loss_of(r), _number(r["logit_scale"]), _number(r["lr"]), r["seed"],
         Cell(count(r["images"]), r["images"]), r["classes"], Cell(count(r["steps"]), r["steps"]),
         *(_number(r[name]) for name in ("final_loss", "final_out", "final_in")), r["clip"],
         Cell(count(len(r["zero_channels"])) if r["zero_channels"] else "–", len(r["zero_channels"])), tag("span", r["encoder"], class_="mono")]
        for r in rows
    ]  # fmt: skip
    return data_table("Neuron encoders", columns, table, "SELECT * FROM alignments has all.")


def _number(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(short_number(value, 4), value)
