"""Which models of a zoo share units: for every two of them how many units are buddies, and how alike those are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.amounts import count, some
from cluster.report import heatmaps
from cluster.report.data import ReportData
from cluster.report.heatmaps import Cell, Control, Matrix, heatmap
from cluster.report.html import Html, join, tag
from cluster.report.numbers import percent, short_number
from cluster.report.section import Section
from cluster.report.sections.zoos import TOLD, Member, MemberNames, Zoo, load_zoos
from cluster.report.tables import Cell as TableCell
from cluster.report.tables import Column, data_table

MOST_ZOOS = 8
TARGETS = {True: "yes", False: "no", None: "not known"}


def render(data: ReportData) -> Html:
    """Matrices of every zoo, and a table of all pairs."""
    zoos, names = load_zoos(data), MemberNames(data)
    lead = tag("p", "Two units are buddies if each is among the k units of the other model that go along with it best: Pearson's r of their "
               "maps over images and positions. They are above chance if r exceeds what place alone explains of the two by more than 999 of 1,000 "
               "units reach with any unit of the other model where images do not belong together. With one neighbour a unit has at most one buddy in a "
               "model; with more, models share more pairs, also by chance.")  # fmt: skip
    shown = [_figures(zoo, names, several=len(zoos) > 1) for zoo in zoos[:MOST_ZOOS]]
    left = len(zoos) - len(shown)
    note = tag("p", f"The first {MOST_ZOOS} of {len(zoos)} zoos have figures.", class_="note") if left > 0 else None
    return join([lead, shown, note, _table(zoos, names)])


SECTION = Section("zoo", "Zoo", ("rosetta_pairs",), render, heatmaps.ASSETS)


def _figures(zoo: Zoo, names: MemberNames, several: bool) -> Html:
    title = f"{zoo.title}: {some(len(zoo.members), 'member')}" if several or zoo.stage is None else None
    if not zoo.between(zoo.ks[0] if zoo.ks else 1):
        return join([tag("h3", title), tag("p", "No pair of two members is published yet.", class_="none")])
    labels = names.of(zoo.members)
    marked = len({row["shares_training"] is True for row in zoo.between(zoo.ks[0]).values()}) > 1
    controls = [Control("k", "neighbours", [(str(k), f"k = {k}") for k in zoo.ks])]
    figures = [
        heatmap(
            "Buddies per unit", [_matrix(zoo, labels, k, _shares, marked) for k in zoo.ks], controls,
            "Pairs of buddies over the number of units of the smaller model. Above the diagonal those above chance. Below it how many there are "
            "where images do not belong together: every unit has nearest ones, and what tells is how alike they are.",
        ),
        heatmap(
            "How alike buddies are", [_matrix(zoo, labels, k, _likeness, marked) for k in zoo.ks], controls,
            "Above the diagonal the median r of buddies; below it what r has to be above place to count: 999 of 1,000 units have less where images do not belong together.",
        ),
    ]  # fmt: skip
    beside = _targets(zoo, marked)
    return join([tag("h3", title) if title else None, beside, tag("div", figures, class_="charts matrices")])


def _targets(zoo: Zoo, marked: bool) -> Html:
    """What models learnt from, as far as it bears on how far they agree. marked: dots tell pairs that share it from others."""
    pairs = list(zoo.between(zoo.ks[0]).values())
    shared, unknown = (sum(row["shares_training"] is what for row in pairs) for what in (True, None))
    said = (
        "All pairs share"
        if shared == len(pairs)
        else f"{shared:,} of {some(len(pairs), 'pair')} {'shares' if shared == 1 else 'share'}"
    )
    text = [f"{said} training targets. {TOLD}"] if shared else []
    if unknown:
        text.append(f"Of {some(unknown, 'pair')} it is not known whether they share training targets.")
    if not text:
        text.append("No two models share training targets.")
    return tag("p", tag("i", class_="dot") if marked else None, " ".join(text), class_="beside")


class Sides(NamedTuple):
    """What stands above the diagonal and below it."""

    above: float | None
    below: float | None


def _shares(row: Mapping[str, Any]) -> Sides:
    units = min(row["units_a"], row["units_b"])
    return Sides(row["above_null"] / units, row["buddies_null"] / units) if units else Sides(None, None)


def _likeness(row: Mapping[str, Any]) -> Sides:
    return Sides(row["r_p50"], row["null_q999"])


def _matrix(
    zoo: Zoo, labels: Mapping[Member, str], k: int, sides: Callable[[Mapping[str, Any]], Sides], marked: bool
) -> Matrix:
    """Symmetric in the pair: what is above the diagonal stands in its mirror below. marked: dots tell pairs apart."""
    cells = []
    for (i, j), row in sorted(zoo.between(k).items()):
        low, high = sorted((i, j))
        found, words = sides(row), _words(row)
        dot = marked and row["shares_training"] is True
        cells += [
            Cell(r, c, value, words, dot)
            for r, c, value in ((low, high, found.above), (high, low, found.below))
            if value is not None
        ]
    axis = [labels[member] for member in zoo.members]
    most = 1.0 if sides is _likeness else max((cell.value for cell in cells), default=1.0) or 1.0
    return Matrix((str(k),), axis, axis, cells, most)


def _words(row: Mapping[str, Any]) -> str:
    """What is known of a pair, whichever cell is pointed at."""
    a, b = row["model_a"], row["model_b"]
    units = min(row["units_a"], row["units_b"])
    per = f", {short_number(row['above_null'] / units)} per unit of the smaller" if units else ""
    lines = [
        f"{a} with {b}, k = {row['k']}",
        f"{count(row['above_null'])} buddies above chance{per}; {count(row['buddies'])} in all, {count(row['buddies_null'])} by chance",
        f"with a buddy: {percent(row['share_a'])} of {count(row['units_a'])} and {percent(row['share_b'])} of {count(row['units_b'])} units",
        f"median r {short_number(row['r_p50'])}; by chance a unit's best is {short_number(row['null_p50'])} above place, and below "
        f"{short_number(row['null_q999'])} for 999 of 1,000",
    ]
    if row["shares_training"] is not False:
        lines.append(
            "they share training targets"
            if row["shares_training"]
            else "whether they share training targets is not known"
        )
    return "\n".join(lines)


def _table(zoos: Sequence[Zoo], names: MemberNames) -> Html:
    columns = [
        Column("a"), Column("b"), *([Column("zoo")] if len(zoos) > 1 else []),
        Column("k", True, "buddies are among the k nearest of each other"),
        Column("above chance", True, "buddies whose r exceeds what place alone gives them by more than chance"), Column("buddies", True),
        Column("by chance", True, "buddies where images do not belong together"),
        Column("units a", True, "that were compared"), Column("units b", True, "that were compared"),
        Column("shared a", True, "share of its units that have a buddy"), Column("shared b", True, "share of its units that have a buddy"),
        Column("median r", True), Column("90 % r", True, "90 % quantile of r over buddies"),
        Column("chance 99.9 %", True, "what the best of 999 of 1,000 units stays below, above place, where images do not belong together"),
        Column("best by chance", True, "median over units of the best r that a unit has there"),
        Column("images", True), Column("same targets", False, "whether both were trained on the same targets"),
        Column("uncertain", True, "units whose last neighbours are not certain; a larger margin settles them"),
    ]  # fmt: skip
    rows = [row for zoo in zoos for row in _rows(zoo, names, len(zoos) > 1)]
    return tag(
        "div", data_table("Pairs of models", columns, rows, "SELECT * FROM rosetta_pairs has all."), class_="pairs"
    )


def _rows(zoo: Zoo, names: MemberNames, several: bool) -> list[list[Any]]:
    """The largest k first; a model with itself behind all pairs."""
    labels = names.of(zoo.members)
    order = {member: i for i, member in enumerate(zoo.members)}
    found = []
    for row in zoo.pairs:
        a, b = Member.of(row, "_a"), Member.of(row, "_b")
        counts = [row[name] for name in ("above_null", "buddies", "buddies_null", "units_a", "units_b")]
        shares = [TableCell(percent(row[name]), row[name]) for name in ("share_a", "share_b")]
        numbers = [
            TableCell(short_number(row[name]), row[name]) for name in ("r_p50", "r_p90", "null_q999", "null_p50")
        ]
        cells = [labels[a], "itself" if a == b else labels[b], *([zoo.title] if several else []), row["k"],
                 *(TableCell(count(n), n) for n in counts), *shares, *numbers, TableCell(count(row["images"]), row["images"]),
                 TARGETS[row["shares_training"]], TableCell(count(row["inexact"]), row["inexact"])]  # fmt: skip
        found.append(((-row["k"], a == b, order[a], order[b]), cells))
    return [cells for _, cells in sorted(found, key=lambda item: item[0])]
