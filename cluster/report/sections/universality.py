"""How many models share each unit: by depth, model by model, what sets shared units apart, and the cliques that they form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from cluster.amounts import count, some
from cluster.report import bars, heatmaps
from cluster.report.bars import Bar, Span, bar_cell, make_span
from cluster.report.charts import Line, step_chart
from cluster.report.data import ReportData
from cluster.report.frame import empty_chart
from cluster.report.heatmaps import Cell as HeatCell
from cluster.report.heatmaps import Control, Matrix, heatmap
from cluster.report.html import Html, join, tag
from cluster.report.numbers import percent, short_number
from cluster.report.scales import make_scale
from cluster.report.section import Section
from cluster.report.sections.zoos import Member, MemberNames, Zoo, load_graphs, member_index
from cluster.report.tables import Cell, Column, data_table

MOST_ZOOS = 8
BINS = 10
"""Steps of depth."""
KURTOSIS_BINS = 40
EVERYWHERE, SOMEWHERE, NOWHERE = "in all others", "in some others", "in no other"


class Shared(NamedTuple):
    """Units of a zoo, one entry each: member, k, depth, other models that share it, of how many, excess kurtosis, activity."""

    member: np.ndarray
    k: np.ndarray
    depth: np.ndarray
    degree: np.ndarray
    models: np.ndarray
    kurtosis: np.ndarray
    active: np.ndarray

    def only(self, keep: np.ndarray) -> Shared:
        """Those where `keep` is true."""
        return Shared(*(column[keep] for column in self))


def render(data: ReportData) -> Html:
    """For every zoo: degrees by depth, shares by model, kurtosis, and cliques by size."""
    zoos, names = load_graphs(data), MemberNames(data)
    lead = tag("p", "A unit is shared with a model if it has a buddy above chance there; it is universal if that holds for all other models. "
               "In a clique units of several models are all buddies of each other.")  # fmt: skip
    shown = [_of_zoo(data, zoo, names, len(zoos) > 1) for zoo in zoos[:MOST_ZOOS]]
    left = len(zoos) - len(shown)
    note = tag("p", f"The first {MOST_ZOOS} of {len(zoos)} zoos are shown.", class_="note") if left > 0 else None
    return join([lead, shown, note])


SECTION = Section(
    "universality",
    "Universality",
    ("rosetta_universality", "rosetta_cliques"),
    render,
    (*bars.ASSETS, *heatmaps.ASSETS),
)


def _of_zoo(data: ReportData, zoo: Zoo, names: MemberNames, several: bool) -> Html:
    units, labels = load_shared(data, zoo), names.of(zoo.members)
    title = tag("h3", zoo.title) if several else None
    if not len(units.k):
        return join([title, tag("p", "No unit was compared.", class_="none"), _cliques(data, zoo, several)])
    ks = sorted(set(units.k.tolist()), reverse=True)
    figures = [_by_depth(units, zoo, labels, ks), _kurtosis(units.only(units.k == ks[0]), ks[0])]
    return join(
        [
            title,
            tag("div", figures, class_="charts matrices"),
            _by_member(units, zoo, labels, ks),
            _cliques(data, zoo, several),
        ]
    )


def load_shared(data: ReportData, zoo: Zoo) -> Shared:
    """Every unit of a zoo, once for each number of neighbours."""
    columns = ["model", "sae", "k", "depth", "degree", "models", "kurtosis", "active"]
    table = data.table("rosetta_universality", columns, {"stage": zoo.stage})
    table = table.set_column(6, "kurtosis", pc.fill_null(table["kurtosis"], float("nan")))
    numbers = (table[name].to_numpy() for name in columns[2:])
    return Shared(member_index(table, zoo.members), *numbers)


# ---------------------------------------------------------------- by depth


def _by_depth(units: Shared, zoo: Zoo, labels: Mapping[Member, str], ks: Sequence[int]) -> Html:
    """A histogram of degrees for each step of depth, of all members and of each."""
    present = [(i, labels[member]) for i, member in enumerate(zoo.members) if (units.member == i).any()]
    options = [("", "all members"), *((str(i), name) for i, name in present)]
    matrices = [
        _degrees(units.only((units.k == k) & ((units.member == int(of)) if of else True)), (of, str(k)))
        for of, _ in options
        for k in ks
    ]  # fmt: skip
    controls = [Control("member", "units of", options), Control("k", "neighbours", [(str(k), f"k = {k}") for k in ks])]
    note = "Share of the units at a depth, in percent; a column sums to 100. Depth 0 is the first site of a model, 1 the last."
    return heatmap("In how many other models units are shared, by depth", matrices, controls, note, 2)


def _degrees(units: Shared, choice: tuple[str, str]) -> Matrix:
    most = int(units.models.max(initial=0))
    step = np.minimum((units.depth * BINS).astype(int), BINS - 1)
    counts = np.zeros((most + 1, BINS), np.int64)
    np.add.at(counts, (np.minimum(units.degree, most), step), 1)
    there = counts.sum(axis=0)
    cells = [
        HeatCell(most - degree, at, counts[degree, at] / there[at],
                 f"depth {at / BINS:.1f} to {(at + 1) / BINS:.1f}: {count(counts[degree, at])} of {count(there[at])} units are shared with {degree} of {most} other models")
        for degree in range(most + 1) for at in range(BINS) if there[at]
    ]  # fmt: skip
    rows, columns = [str(most - i) for i in range(most + 1)], [f"{i / BINS:.1f}" for i in range(BINS)]
    return Matrix(
        choice, rows, columns, cells, max((c.value for c in cells), default=1.0), "models", "depth", values="percent"
    )


# ---------------------------------------------------------------- what sets shared units apart


def _groups(units: Shared) -> dict[str, Shared]:
    """By how many models share them; where there is one other model only, that is all others."""
    everywhere = (units.degree >= units.models) & (units.degree > 0)
    found = {
        EVERYWHERE: units.only(everywhere),
        SOMEWHERE: units.only((units.degree > 0) & ~everywhere),
        NOWHERE: units.only(units.degree == 0),
    }
    return {name: of for name, of in found.items() if len(of.k)}


def _kurtosis(units: Shared, k: int) -> Html:
    """Outlines of kurtosis, each group as shares of itself so that small ones can be seen."""
    title = f"Kurtosis of shared units and others (k = {k})"
    known = units.only(np.isfinite(units.kurtosis))
    if not len(known.k):
        return empty_chart(title, "No unit varies.")
    x = make_scale("kurtosis + 3 (3 of a normal distribution)", known.kurtosis + 3.0, log=True)
    edges = np.geomspace(x.low, x.high, KURTOSIS_BINS + 1)
    lines = []
    for number, (name, of) in enumerate(_groups(known).items()):
        found = np.histogram(of.kurtosis + 3.0, edges)[0] / len(of.k)
        lines.append(
            Line(
                name,
                edges[:-1],
                found,
                number,
                f"{len(of.k):,}, median kurtosis {short_number(float(np.median(of.kurtosis)))}",
            )
        )
    note = "Of each group the share of its units. A unit that responds to few things is silent most of the time and then strong: large kurtosis."
    return step_chart(title, x, "share of units", edges, lines, note=note)


def _by_member(units: Shared, zoo: Zoo, labels: Mapping[Member, str], ks: Sequence[int]) -> Html:
    """Shares of each model, and what its shared units are like against the others."""
    parts = {
        (i, k): of
        for k in ks
        for i in range(len(zoo.members))
        if len((of := units.only((units.member == i) & (units.k == k))).k)
    }
    shares = {
        key: (_share(of.degree > 0), _share((of.degree >= of.models) & (of.models > 0))) for key, of in parts.items()
    }
    spans = [make_span(Bar(values[n]) for values in shares.values()) for n in (0, 1)]
    columns = [
        Column("member"), Column("k", True), Column("units", True, "that do vary and are not too rare to be compared"),
        Column("shared", True, "share of units with a buddy above chance in some other model"),
        Column("universal", True, "share of units with one in every other model"),
        Column("mean degree", True, "other models that share a unit, mean over units"),
        Column("kurtosis, shared", True, "median over shared units; 0 of a normal distribution"), Column("others", True, "median over the others"),
        Column("active, shared", True, "share of positions where they are active, median over shared units"), Column("others", True, "median over the others"),
    ]  # fmt: skip
    rows = [
        [labels[zoo.members[i]], k, Cell(count(len(of.k)), len(of.k)),
         *(bar_cell(Bar(value), span, colour, percent(value)) for value, span, colour in zip(shares[i, k], spans, (0, 2))),
         Cell(short_number(float(of.degree.mean())), float(of.degree.mean())), *_apart(of.kurtosis, of.degree > 0, short_number),
         *_apart(of.active, of.degree > 0, percent)]
        for (i, k), of in parts.items()
    ]  # fmt: skip
    return data_table("Universality of every member", columns, rows, "SELECT * FROM rosetta_universality has all.")


def _share(which: np.ndarray) -> float:
    return float(which.mean())


def _apart(values: np.ndarray, shared: np.ndarray, word: Any) -> Iterable[Cell]:
    """Medians of shared units and of the others."""
    for of in (values[shared], values[~shared]):
        known = of[np.isfinite(of)]
        median = float(np.median(known)) if len(known) else None
        yield Cell(word(median) if median is not None else "–", median)


# ---------------------------------------------------------------- cliques


def _cliques(data: ReportData, zoo: Zoo, several: bool) -> Html:
    """How many there are of each size, for every number of neighbours."""
    columns = ["k", "size", "mean_r", "min_r", "is_truncated"]
    table = data.table("rosetta_cliques", columns, {"stage": zoo.stage})
    heading = tag("h4" if several else "h3", "Cliques by size")
    if not len(table):
        return join([heading, tag("p", "There is no clique of so many models as were asked for.", class_="none")])
    k, size, mean_r, min_r = (table[name].to_numpy() for name in columns[:4])
    found = {
        (n, s): (k == n) & (size == s)
        for s in sorted(set(size.tolist()), reverse=True)
        for n in sorted(set(k.tolist()), reverse=True)
    }
    span = make_span(Bar(rows.sum() / s) for (_, s), rows in found.items())
    ks = sorted(set(k.tolist()), reverse=True)
    heads = [c for n in ks for c in (Column(f"cliques, k = {n}", True), Column(f"mean r, k = {n}", True, "mean over cliques of their mean r"),
                                     Column(f"weakest r, k = {n}", True, "mean over cliques of their smallest r"))]  # fmt: skip
    rows = [
        [some(s, "model"), *(cell for n in ks for cell in _amount(found[n, s], s, span, mean_r, min_r, ks.index(n)))]
        for s in sorted(set(size.tolist()), reverse=True)
    ]  # fmt: skip
    cut = table["is_truncated"].to_numpy(zero_copy_only=False).any()
    note = tag("p", "There are more cliques than are listed.", class_="note") if cut else None
    return join([heading, data_table("Cliques by size", [Column("size"), *heads], rows), note])


def _amount(rows: np.ndarray, size: int, span: Span, mean_r: np.ndarray, min_r: np.ndarray, colour: int) -> list[Cell]:
    """A clique has one row for each of its units, so that means over rows of one size are means over cliques."""
    cliques = int(rows.sum()) // size
    if not cliques:
        return [Cell("–", 0), Cell("–"), Cell("–")]
    means = [float(values[rows].mean()) for values in (mean_r, min_r)]
    return [bar_cell(Bar(float(cliques)), span, colour, count(cliques)), *(Cell(short_number(m), m) for m in means)]
