"""At which depths models share units: sites of one model against sites of another, and over all pairs depth against depth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from cluster.amounts import count, some
from cluster.report import heatmaps
from cluster.report.data import ReportData
from cluster.report.heatmaps import Cell, Control, Matrix, heatmap
from cluster.report.html import Html, join, tag
from cluster.report.numbers import short_number
from cluster.report.section import Section
from cluster.report.sections.zoos import Member, MemberNames, Zoo, load_graphs
from cluster.report.tables import Cell as TableCell
from cluster.report.tables import Column, data_table

MOST_ZOOS = 8
MOST_CELLS = 24_000
"""Pairs of sites of one zoo that figures show."""
BINS = 10
"""Steps of depth, from the first site of a model to its last."""

Rows = list[dict[str, Any]]
Pair = tuple[int, int]


def render(data: ReportData) -> Html:
    """For every zoo: one pair at a time, all pairs together, and a table of how far depths agree."""
    zoos, names = load_graphs(data), MemberNames(data)
    depths = load_depths(data)
    lead = tag("p", "Buddies above chance between every two sites, sites from the first of a model to its last. If models build things up in the "
               "same order, buddies lie along the diagonal.")  # fmt: skip
    shown = [_figures(data, zoo, names, depths, len(zoos) > 1) for zoo in zoos[:MOST_ZOOS]]
    left = len(zoos) - len(shown)
    note = tag("p", f"The first {MOST_ZOOS} of {len(zoos)} zoos are shown.", class_="note") if left > 0 else None
    return join([lead, shown, note])


SECTION = Section("layers", "Layer alignment", ("rosetta_layers",), render, heatmaps.ASSETS)


def load_depths(data: ReportData) -> dict[Member, dict[str, float]]:
    """Member -> site -> its place in the model, of all sites that were compared."""
    columns = ["model", "sae", "site", "depth"]
    table = data.table("rosetta_units", columns)
    found: dict[Member, dict[str, float]] = defaultdict(dict)
    for row in table.group_by(columns).aggregate([]).to_pylist():
        found[Member.of(row)][row["site"]] = row["depth"]
    return found


def _figures(
    data: ReportData, zoo: Zoo, names: MemberNames, depths: Mapping[Member, Mapping[str, float]], several: bool
) -> Html:
    table = data.table("rosetta_layers", None, {"stage": zoo.stage})
    rows = [row for row in table.to_pylist() if row["buddies"]]
    title = tag("h3", zoo.title) if several else None
    if not rows:
        return join([title, tag("p", "No two units of different models are buddies above chance.", class_="none")])
    labels = names.of(zoo.members)
    ks = sorted({row["k"] for row in rows}, reverse=True)
    by_pair = _by_pair(zoo, rows)
    kept = _kept(by_pair)
    options = [(f"{i}-{j}", f"{labels[zoo.members[i]]} and {labels[zoo.members[j]]}") for i, j in sorted(kept)]
    k_control = Control("k", "neighbours", [(str(k), f"k = {k}") for k in ks])
    matrices = [_sites(zoo, labels, pair, k, of, depths) for pair in sorted(kept) for k, of in by_pair[pair].items()]
    left = len(by_pair) - len(kept)
    figures = [
        heatmap("Buddies between the sites of two models", matrices, [Control("pair", "pair", options), k_control],
                f"Without {some(left, 'pair')} with the fewest buddies; the table rosetta_layers has all." if left else ""),
        heatmap("Depth against depth, all pairs", [_depths(rows, k) for k in ks], [k_control],
                "0 is the first site of a model, 1 the last. Every pair counts both ways round, so that the order of models is without effect."),
    ]  # fmt: skip
    return join([title, tag("div", figures, class_="charts matrices"), _table(zoo, labels, by_pair)])


def _by_pair(zoo: Zoo, rows: Rows) -> dict[Pair, dict[int, Rows]]:
    """Pair -> k -> its rows, the largest k first."""
    places = {member: i for i, member in enumerate(zoo.members)}
    found: dict[Pair, dict[int, Rows]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: -row["k"]):
        a, b = places.get(Member.of(row, "_a")), places.get(Member.of(row, "_b"))
        if a is not None and b is not None:
            found[a, b][row["k"]].append(row)
    return {pair: dict(of) for pair, of in found.items()}


def _kept(by_pair: Mapping[Pair, Mapping[int, Rows]]) -> list[Pair]:
    """Pairs with the most buddies, as many as may be drawn."""
    ranked = sorted(by_pair, key=lambda pair: (-sum(r["buddies"] for of in by_pair[pair].values() for r in of), pair))
    kept: list[Pair] = []
    room = MOST_CELLS
    for pair in ranked:
        room -= sum(len(of) for of in by_pair[pair].values())
        if room >= 0 or not kept:
            kept.append(pair)
    return kept


def _sites(
    zoo: Zoo, labels: Mapping[Member, str], pair: Pair, k: int, rows: Rows, depths: Mapping[Member, Mapping[str, float]]
) -> Matrix:
    """One pair: all sites of both, by depth."""
    a, b = (zoo.members[i] for i in pair)
    down, across = _axis(depths.get(a, {}), rows, "_a"), _axis(depths.get(b, {}), rows, "_b")
    cells = [
        Cell(down.index(row["site_a"]), across.index(row["site_b"]), row["buddies"],
             f"{some(row['buddies'], 'pair')} of buddies, median r {short_number(row['r_p50'])}")
        for row in rows
    ]  # fmt: skip
    return Matrix(
        (f"{pair[0]}-{pair[1]}", str(k)),
        down,
        across,
        cells,
        max(c.value for c in cells),
        labels[a],
        labels[b],
        "count",
    )


def _axis(depths: Mapping[str, float], rows: Rows, side: str) -> list[str]:
    found = {**depths, **{row[f"site{side}"]: row[f"depth{side}"] for row in rows}}
    return sorted(found, key=lambda site: (found[site], site))


def _depths(rows: Rows, k: int) -> Matrix:
    """All pairs of sites, by tenths of depth."""
    of = [row for row in rows if row["k"] == k]
    at = [np.minimum((np.array([row[f"depth{s}"] for row in of]) * BINS).astype(int), BINS - 1) for s in ("_a", "_b")]
    buddies = np.array([row["buddies"] for row in of], dtype=np.int64)
    counts = np.zeros((BINS, BINS), np.int64)
    np.add.at(counts, (at[0], at[1]), buddies)
    counts = counts + counts.T
    axis = [f"{i / BINS:.1f}" for i in range(BINS)]
    cells = [
        Cell(int(r), int(c), float(counts[r, c]), f"to {(r + 1) / BINS:.1f} and {(c + 1) / BINS:.1f}: {some(int(counts[r, c]), 'pair')} of buddies")
        for r, c in np.argwhere(counts)
    ]  # fmt: skip
    return Matrix((str(k),), axis, axis, cells, float(counts.max()), "depth", "depth in the other model", "count")


def _table(zoo: Zoo, labels: Mapping[Member, str], by_pair: Mapping[Pair, Mapping[int, Rows]]) -> Html:
    columns = [
        Column("a"), Column("b"), Column("k", True), Column("buddies", True, "above chance"),
        Column("r of depths", True, "Pearson's r of the depths of both units over buddies: 1 if models build up in the same order"),
        Column("apart", True, "mean difference of the depths of both units, as a share of the model"),
    ]  # fmt: skip
    rows = [
        [labels[zoo.members[i]], labels[zoo.members[j]], k, *_agreement(of)]
        for (i, j), by_k in sorted(by_pair.items())
        for k, of in by_k.items()
    ]
    return tag(
        "div",
        data_table("How far depths agree", columns, rows, "SELECT * FROM rosetta_layers has all."),
        class_="pairs",
    )


def _agreement(rows: Rows) -> list[TableCell]:
    buddies, a, b = (np.array([row[name] for row in rows], dtype=float) for name in ("buddies", "depth_a", "depth_b"))
    r = weighted_r(a, b, buddies)
    apart = float(np.average(np.abs(a - b), weights=buddies))
    return [
        TableCell(count(buddies.sum()), float(buddies.sum())),
        TableCell(short_number(r), r),
        TableCell(short_number(apart), apart),
    ]


def weighted_r(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float | None:
    """Pearson's r of weighted points; None where either does not vary."""
    a, b = a - np.average(a, weights=weights), b - np.average(b, weights=weights)
    spread = float(np.average(a * a, weights=weights) * np.average(b * b, weights=weights))
    return float(np.average(a * b, weights=weights)) / spread**0.5 if spread > 1e-18 else None
