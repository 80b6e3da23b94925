"""Which methods to explain beat which by what measure, in words and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

from cluster.report.html import Html, join, tag
from cluster.report.numbers import short_number
from cluster.report.sections.ways import METHODS, say_method
from cluster.report.tables import Cell, Column, data_table

LEVEL = 0.05
"""A corrected p-value below it counts as a difference."""
NAMES = {"mann_whitney": "Mann–Whitney, one side", "wilcoxon": "Wilcoxon, paired", "shapiro": "Shapiro–Wilk"}
Row = dict[str, Any]


class Pair(NamedTuple):
    """Two methods by one measure: `more` has the larger scores; p of the paired test after correction, if there is one."""

    more: str
    less: str
    p: float | None

    @property
    def is_real(self) -> bool:
        """Whether the difference stands."""
        return self.p is not None and self.p < LEVEL


def say_p(p: float | None) -> str:
    """p = 0.012, p < 0.001"""
    return "no p" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


class Contests:
    """The tests of one summary."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)
        self._by: dict[tuple[str, ...], Row] = {
            (r["masking"], r["metric"], r["test"], r["method_a"], r["method_b"]): r for r in self._rows
        }
        order = list(METHODS)
        self._methods = {
            group: sorted({r["method_a"] for r in self._rows if (r["masking"], r["metric"]) == group}, key=order.index)
            for group in dict.fromkeys((r["masking"], r["metric"]) for r in self._rows)
        }

    @property
    def groups(self) -> list[tuple[str, str]]:
        """(masking, measure) with at least two methods."""
        return [group for group, methods in self._methods.items() if len(methods) > 1]

    def pairs(self, masking: str, metric: str) -> list[Pair]:
        """Every two methods once, turned so that the first has more."""
        return [self._pair(masking, metric, a, b) for a, b in combinations(self._methods[masking, metric], 2)]

    def _pair(self, masking: str, metric: str, a: str, b: str) -> Pair:
        """Which has more is said by the unpaired test, which is asked both ways; whether it is real by the paired one."""
        ways_round = [self._p(masking, metric, "mann_whitney", *names)[0] for names in ((a, b), (b, a))]
        turned = None not in ways_round and ways_round[1] < ways_round[0]  # type: ignore[operator]
        paired = self._p(masking, metric, "wilcoxon", a, b)[1]
        if paired is None:
            paired = self._p(masking, metric, "wilcoxon", b, a)[1]
        return Pair(b, a, paired) if turned else Pair(a, b, paired)

    def _p(self, *key: str) -> tuple[float | None, float | None]:
        """p as it is, and after correction."""
        row = self._by.get(key)
        return (None, None) if row is None else (row["p"], row["p_holm"])

    def verdict(self, masking: str, metric: str) -> str:
        """Informed beats Top-k (p < 0.001) and Steering (p = 0.02); Steering and Top-k are not told apart (p = 0.4)."""
        pairs = self.pairs(masking, metric)
        said = []
        for method in self._methods[masking, metric]:
            beaten = [f"{say_method(pair.less)} ({say_p(pair.p)})" for pair in pairs if pair.is_real and pair.more == method]  # fmt: skip
            if beaten:
                said.append(f"{say_method(method)} beats {' and '.join(beaten)}")
        unclear = [pair for pair in pairs if not pair.is_real]
        said += [f"{say_method(pair.more)} and {say_method(pair.less)} are not told apart ({say_p(pair.p) if pair.p is not None else 'too few features'})" for pair in unclear]  # fmt: skip
        return "; ".join(said) + "."

    def table(self, caption: str) -> Html | None:
        """Every test, those that compare two methods first."""
        if not self._rows:
            return None
        columns = [
            Column("measure"), Column("masking"), Column("test"), Column("greater", hint="of Shapiro–Wilk: whose scores"), Column("than"),
            Column("features", True), Column("statistic", True), Column("p", True), Column("p, Holm", True, "corrected over all rows with this test"), Column("verdict"),
        ]  # fmt: skip
        order = list(NAMES)
        rows = sorted(self._rows, key=lambda r: (order.index(r["test"]) if r["test"] in NAMES else 9, r["metric"], r["masking"]))  # fmt: skip
        table = [
            [r["metric"], r["masking"], NAMES.get(r["test"], r["test"]), *(say_method(r[m]) if r[m] else "" for m in ("method_a", "method_b")),
             r["n"], *(_number(r[name]) for name in ("statistic", "p", "p_holm")), _verdict(r)]
            for r in rows
        ]  # fmt: skip
        words = "Wilcoxon's test is paired and says that two methods differ; Mann–Whitney's is the one that papers use, unpaired, and says that one is greater."
        return tag("details", tag("summary", "All tests"), join([tag("p", words), data_table(caption, columns, table, "SELECT * FROM explanation_tests has all.")]))  # fmt: skip


def _verdict(row: Row) -> Html:
    is_real = row["p_holm"] is not None and row["p_holm"] < LEVEL
    if row["test"] == "shapiro":
        return tag("span", "not normal" if is_real else "may be normal", class_="state")
    words = {"mann_whitney": "greater", "wilcoxon": "a difference"}.get(row["test"], "a difference")
    return tag("span", words if is_real else "not told apart", class_="state good" if is_real else "state")


def _number(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(short_number(value), value)
