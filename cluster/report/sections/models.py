"""The models that were inspected: family, size, cost, and what they have to tap."""

from __future__ import annotations

from cluster.amounts import short
from cluster.report.data import ReportData
from cluster.report.html import Html, tag
from cluster.report.section import Section
from cluster.report.tables import Cell, Column, data_table

COLUMNS = ("model", "family", "n_layers", "width", "grid_h", "grid_w", "input_h", "input_w", "embed_dim", "has_text",
           "parameters", "flops", "sites", "act_kind", "pool", "weights_sha256")  # fmt: skip


def render(data: ReportData) -> Html:
    """One row per model."""
    found = {row["model"]: row for row in data.table("models", COLUMNS).to_pylist()}
    columns = [Column("model"), Column("family"), Column("blocks", True), Column("width", True),
               Column("input", True, "pixels"), Column("grid", True, "patches"), Column("embedding", True), Column("text"),
               Column("pool"), Column("parameters", True), Column("FLOPs an image", True), Column("sites", True),
               Column("weights", False, "start of the sha256 of the checkpoint")]  # fmt: skip
    return data_table("Models", columns, [_row(row) for row in found.values()])


SECTION = Section("models", "Models", ("models",), render)


def _row(row: dict[str, object]) -> list[object]:
    grid = Cell("–", 0) if row["grid_h"] is None else Cell(f"{row['grid_h']}×{row['grid_w']}", int(str(row["grid_h"])))
    return [
        row["model"],
        row["family"],
        row["n_layers"],
        row["width"],
        Cell(f"{row['input_h']}×{row['input_w']}", int(str(row["input_h"]))),
        grid,
        row["embed_dim"] or "–",
        "yes" if row["has_text"] else "",
        row["pool"],
        Cell(short(float(str(row["parameters"]))), float(str(row["parameters"]))),
        Cell(short(float(str(row["flops"])), "FLOP"), float(str(row["flops"]))),
        len(row["sites"]),  # type: ignore[arg-type]
        tag("span", str(row["weights_sha256"])[:12], class_="mono"),
    ]
