"""Ways to explain features: what each is called, its colour in every section, and which are controls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.report.colours import N_SERIES, series_class
from cluster.report.html import Html, tag
from jobs.explained import Variant

METHODS = {"topk": "Top-k", "steering": "Steering", "informed": "Informed"}
COLOURS = {("topk", "masks"): 0, ("steering", "none"): 1, ("informed", "masks"): 2, ("topk", "heatmaps"): 3, ("informed", "heatmaps"): 4}  # fmt: skip
APART = ("positions", "alpha_asked", "alpha_unit")
"""Settings that a name says where several ways of one method have different ones."""


def way_of(row: Mapping[str, Any]) -> Variant:
    """Of a row of any table of explanations."""
    return Variant(*(str(row[name]) for name in Variant._fields))


def is_control(way: Variant) -> bool:
    """Whether it steers with something else than the feature, or not at all."""
    return way.direction != "sae" or (way.method != "topk" and _is_zero(way.alpha_asked))


def say_method(method: str, masking: str = "none") -> str:
    """Top-k masks, Steering"""
    return " ".join([METHODS.get(method, method), *([masking] if masking != "none" else [])])


def order_of(way: Variant) -> tuple[Any, ...]:
    """Controls last; else by method as papers have them, masks before heatmaps."""
    method = list(METHODS).index(way.method) if way.method in METHODS else len(METHODS)
    return is_control(way), way.masking == "heatmaps", method, way


class Ways:
    """Ways that a page shows together, in their usual order; each has a name that none of the others has."""

    def __init__(self, ways: Iterable[Variant]) -> None:
        self.ways = tuple(sorted(set(ways), key=order_of))
        self._names = _names(self.ways)

    def name(self, way: Variant) -> str:
        """Method, masking, direction of controls, and what else sets it apart."""
        return self._names[way]

    def colour(self, way: Variant) -> int:
        """Number of its series: one colour for method and masking, whose lines are told apart by dashes."""
        colour = COLOURS.get((way.method, way.masking), len(COLOURS))
        alike = [w for w in self.ways if (w.method, w.masking) == (way.method, way.masking)]
        return colour + N_SERIES * alike.index(way)

    def label(self, way: Variant) -> Html:
        """A name with a spot of its colour; of a control that it is one, by a hollow spot too."""
        more = tag("span", " control", class_="remark") if is_control(way) else None
        spot = tag("i", class_="spot hollow" if is_control(way) else "spot")
        return tag("span", spot, tag("span", self.name(way), more), class_=f"method {series_class(self.colour(way))}")


def _names(ways: Iterable[Variant]) -> dict[Variant, str]:
    groups: dict[tuple[str, str, str], list[Variant]] = defaultdict(list)
    for way in ways:
        groups[way.method, way.masking, way.direction].append(way)
    return {way: _name(way, group) for group in groups.values() for way in group}


def _name(way: Variant, alike: Iterable[Variant]) -> str:
    others = list(alike)
    words = [say_method(way.method, way.masking)]
    if way.direction != "sae":
        words.append(f"{way.direction} direction")
    if len({w.positions for w in others}) > 1:
        words.append(f"at {way.positions}")
    if len({w.alpha_asked for w in others}) > 1 or (way.method != "topk" and _is_zero(way.alpha_asked)):
        words.append(f"alpha {way.alpha_asked}")
    if len({w.alpha_unit for w in others}) > 1:
        words.append(f"of {way.alpha_unit.replace('_', ' ')}")
    if len({w.vlm for w in others}) > 1:
        words.append(f"by {way.vlm}")
    return ", ".join(words)


def _is_zero(alpha: str) -> bool:
    return alpha != "auto" and float(alpha) == 0
