"""Which known concepts some latent tells apart: how many each SAE finds, and the best latent for each concept."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Any

from cluster.amounts import count
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.numbers import percent
from cluster.report.section import Section
from cluster.report.sections.saes import Described, load_described
from cluster.report.tables import Cell, Column, data_table

FOUND = 0.9
COLUMNS = ["stage", "feature", "level", "concept", "n_pos", "n", "auroc", "best_f1", "rank_in_concept"]


def render(data: ReportData) -> Html:
    """A table of SAEs, and one of concepts."""
    saes = {sae.stage: sae for sae in load_described(data)}
    rows = data.table("sae_selectivity", COLUMNS, {"rank_in_concept": [0]}).to_pylist()
    order = {stage: i for i, stage in enumerate(saes)}
    rows = sorted((r for r in rows if r["stage"] in saes), key=lambda r: (r["level"], order[r["stage"]]))
    lead = tag("p", f"A concept counts as found if some latent tells it apart with AUROC above {FOUND} on the images that were "
               "described. Level image compares images by their labels; level patch compares patches where the truth of each is known.")  # fmt: skip
    return join([lead, _of_saes(rows, saes), tag("h3", "The best latent for each concept"), _of_concepts(rows, saes)])


SECTION = Section("concepts", "Concepts", ("sae_selectivity",), render)


def _of_saes(rows: list[dict[str, Any]], saes: dict[str, Described]) -> Html:
    best: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        best[row["stage"], row["level"]].append(row["auroc"])
    columns = [Column("SAE"), Column("level"), Column("concepts", True), Column("found", True), Column("share", True),
               Column("median of the best AUROC", True)]  # fmt: skip
    table = []
    for (stage, level), aurocs in best.items():
        found = sum(a > FOUND for a in aurocs)
        share = found / len(aurocs)
        table.append([saes[stage].title, level, Cell(count(len(aurocs)), len(aurocs)), Cell(count(found), found),
                      Cell(percent(share), share), _score(median(aurocs))])  # fmt: skip
    return data_table("Concepts found by each SAE", columns, table)


def _of_concepts(rows: list[dict[str, Any]], saes: dict[str, Described]) -> Html:
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["level"], row["concept"]
        if key not in best or row["auroc"] > best[key]["auroc"]:
            best[key] = row
    columns = [Column("concept"), Column("level"), Column("of", True, "images or patches that have it"), Column("AUROC", True),
               Column("F1", True), Column("latent", True), Column("SAE")]  # fmt: skip
    table = [
        [concept, level, Cell(f"{count(row['n_pos'])} of {count(row['n'])}", row["n_pos"]), _score(row["auroc"]),
         _score(row["best_f1"]), row["feature"], saes[row["stage"]].title]
        for (level, concept), row in sorted(best.items())
    ]  # fmt: skip
    return data_table("Best latent for each concept", columns, table, "SELECT * FROM sae_selectivity has all.")


def _score(value: float) -> Cell:
    return Cell(f"{value:.3f}", value)
