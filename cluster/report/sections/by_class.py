"""The same interventions class by class: one small picture for each class, shown when a reader asks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cluster.report.colours import series_class
from cluster.report.data import ReportData
from cluster.report.frame import px
from cluster.report.html import Html, join, tag
from cluster.report.sections.variants import Variants, place
from schemas.intervene import Change

MOST_CLASSES = 24
BAR, GAP, HIGH, TEXT = 9, 12, 60, 12
COLUMNS = ["stage", "op", "beta", "class_name", "n", "correct_ref", "correct_edit"]


class ClassEffects(NamedTuple):
    """One class: its images, and the change of its accuracy by change and method, percentage points over all seeds."""

    name: str
    images: int
    effects: dict[Change, dict[str, float]]

    @property
    def largest(self) -> float:
        """The largest size of any effect."""
        return max((abs(v) for of in self.effects.values() for v in of.values()), default=0.0)


def load_classes(data: ReportData, methods: Mapping[str, str]) -> list[ClassEffects]:
    """Every class, in the order of names, by the stages of the methods that are compared; without classes of no image.

    methods: stage -> method; stages of one method are its seeds, whose images are added up.
    """
    counts: dict[str, dict[tuple[Change, str], list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    images: dict[str, int] = {}
    for row in data.table("intervention_eval", COLUMNS, {"stage": sorted(methods)}).to_pylist():
        if row["n"]:
            total = counts[row["class_name"]][Change(op=row["op"], beta=row["beta"]), methods[row["stage"]]]
            total[0] += row["n"]
            total[1] += row["correct_edit"] - row["correct_ref"]
            images[row["class_name"]] = row["n"]
    found = []
    for name in sorted(counts):
        effects: dict[Change, dict[str, float]] = defaultdict(dict)
        for (change, variant), (n, gained) in counts[name].items():
            effects[change][variant] = 100 * gained / n
        found.append(ClassEffects(name, images[name], dict(effects)))
    return found


def make_classes(
    data: ReportData, methods: Mapping[str, str], variants: Variants, changes: Mapping[Change, str]
) -> Html | None:
    """The classes with the largest effects, all on one scale; None where nothing is told by class."""
    classes = load_classes(data, methods)
    if not classes:
        return None
    shown = sorted(sorted(classes, key=lambda c: -c.largest)[:MOST_CLASSES], key=lambda c: c.name)
    most = max(c.largest for c in shown) or 1.0
    shown_variants = sorted({v for c in shown for by in c.effects.values() for v in by}, key=place)
    left = len(classes) - len(shown)
    note = f"All on one scale, from −{most:.0f} to +{most:.0f} points."
    note += (
        f" {left:,} more classes, on which no method does more, are not on this page: SELECT * FROM intervention_eval."
        if left
        else ""
    )
    pictures = tag("div", (_picture(c, most, shown_variants, variants, changes) for c in shown), class_="classes")
    summary = tag("summary", f"Class by class ({len(classes):,})")
    return tag("details", summary, variants.legend(shown_variants), tag("p", note, class_="note"), pictures)


def _picture(
    of: ClassEffects, most: float, shown: Sequence[str], variants: Variants, changes: Mapping[Change, str]
) -> Html:
    """Columns around zero, one group for each change."""
    group = BAR * len(shown) + GAP
    width, middle = group * len(changes), HIGH / 2
    marks = []
    for g, (change, words) in enumerate(changes.items()):
        start = g * group + GAP / 2
        for i, variant in enumerate(shown):
            value = of.effects.get(change, {}).get(variant)
            if value is not None:
                top = middle - max(value, 0) / most * middle
                title = tag("title", f"{of.name}, {words}, {variant}: {value:+.1f} points")
                marks.append(
                    tag(
                        "rect",
                        title,
                        x=px(start + i * BAR),
                        y=px(top),
                        width=BAR - 1,
                        height=px(max(abs(value) / most * middle, 0.6)),
                        class_=series_class(variants.colour(variant)),
                    )
                )
        marks.append(tag("text", words, x=px(start + BAR * len(shown) / 2), y=HIGH + TEXT - 2, text_anchor="middle"))
    zero = tag("path", d=f"M0 {middle}H{width}", class_="zero")
    told = "; ".join(
        f"{words}: " + ", ".join(f"{v} {of.effects.get(c, {}).get(v, 0.0):+.0f}" for v in shown)
        for c, words in changes.items()
    )
    picture = tag(
        "svg", join([zero, *marks]), viewBox=f"0 0 {width} {HIGH + TEXT}", role="img", aria_label=f"{of.name}: {told}"
    )
    return tag("figure", tag("figcaption", tag("b", of.name), f" {of.images:,} images"), picture)
