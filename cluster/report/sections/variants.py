"""The methods of a report: their order, and the colour that each has in every section."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.report.colours import series_class
from cluster.report.data import ReportData
from cluster.report.frame import dot_class
from cluster.report.html import Html, tag

ORDER = ("miclip", "clip_dissect", "netdissect", "v_interp", "act_values")
TRUTH = "auroc"
"""The method that knows the labels: what the others are judged by, not one of them."""
APART = " · "
"""Between a variant and what tells it from the same variant with other settings, where there are several."""
TABLES = ("descriptions", "intervention_summary", "method_scores", "trace_summary", "geometry_summary")


class Variants:
    """Every method of the tables of a report, each with a number that is its colour."""

    def __init__(self, data: ReportData) -> None:
        found = {v for name in TABLES for v in data.table(name, ["variant"])["variant"].unique().to_pylist()}
        self.names = tuple(sorted(found, key=place))
        self._numbers = {name: number for number, name in enumerate(self.names)}

    def colour(self, name: str) -> int:
        """Number of its series; a variant has one colour whatever its settings are."""
        return self._numbers.get(name.partition(APART)[0], len(self.names))

    def legend(self, variants: Iterable[str]) -> Html:
        """Names beside their colours."""
        return tag("ul", (tag("li", self.label(v)) for v in sorted(set(variants), key=place)), class_="methods")

    def label(self, variant: str, seeds: int = 1) -> Html:
        """A name with a spot of its colour; said of it: that it is no competitor, and of how many seeds."""
        remark = ", ".join(["truth"] * is_truth(variant) + [f"{seeds} seeds"] * (seeds > 1))
        more = tag("span", f" {remark}", class_="remark") if remark else None
        return tag(
            "span",
            tag("i", class_=f"spot {dot_class(self.colour(variant)) or ''}".strip()),
            tag("span", variant, more),
            class_=f"method {series_class(self.colour(variant))}",
        )


def place(variant: str) -> tuple[int, tuple[bool, str]]:
    """By method, our own first and the truth last; of our own first the one with both losses."""
    method = variant.partition(" ")[0]
    order = ORDER.index(method) if method in ORDER else len(ORDER) + (method == TRUTH)
    return order, (" in+out" not in variant, variant)


def is_truth(variant: str) -> bool:
    """Whether it is the method that knows the labels."""
    return variant.partition(" ")[0] == TRUTH
