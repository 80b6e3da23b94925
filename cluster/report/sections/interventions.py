"""What becomes of accuracy when the units that a method found for a class are changed: bars with intervals, off-class beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from cluster.report import bars
from cluster.report.bars import Bar, bar_cell, make_span, mean_bar
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.numbers import percent
from cluster.report.section import Section
from cluster.report.sections.by_class import make_classes
from cluster.report.sections.judged import Judgements
from cluster.report.sections.places import Place, PlaceNames, place_of
from cluster.report.sections.variants import Variants, is_truth, place
from cluster.report.tables import Cell, Column, data_table
from schemas.intervene import Change


class Setting(NamedTuple):
    """Interventions that can be compared: at one place, with one use of the SAE's error, at the same tokens."""

    place: Place
    error: str
    positions: str

    @property
    def words(self) -> str:
        """Behind the name of the place."""
        dropped = ", error dropped" if self.error == "drop" else ""
        return ("" if self.positions == "all" else f", {self.positions} tokens") + dropped


class Effect(NamedTuple):
    """One method under one change, over its seeds; off-class is None where it was not measured."""

    on: Bar
    off: Bar | None
    seeds: int


Effects = dict[str, dict[Change, Effect]]


def render(data: ReportData) -> Html:
    """Who wins where, then the bars of every place."""
    settings = _load(data)
    variants, names, tests = Variants(data), PlaceNames(data), Judgements(data)
    lead = tag("p", "For every class the units that a method found are enhanced or removed, and the accuracy on images of that "
               "class is compared with the accuracy without a change, in percentage points; bars are means over classes with 95 % "
               "bootstrap intervals. Enhancing should raise it, removing should lower it. Off class: the same units, images of other "
               "classes; a specific method leaves them alone. ★ marks the largest effect in the wanted direction.")  # fmt: skip
    blocks = [_block(data, s, effects, acc, variants, names, tests) for s, (effects, acc) in settings.items()]
    return join([lead, _winners(settings, variants, names, tests), *blocks])


SECTION = Section(
    "interventions", "Interventions", ("intervention_summary",), render, (*bars.ASSETS, "browse.css", "units.css")
)


def _load(data: ReportData) -> dict[Setting, tuple[Effects, float]]:
    """Effects of every method at every setting, and the accuracy without a change there."""
    grouped: dict[Setting, dict[tuple[str, Change], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in data.table("intervention_summary").to_pylist():
        change = Change(op=row["op"], beta=row["beta"])
        setting = Setting(place_of(row), row["error_mode"], row["positions"])
        grouped[setting][row["variant"], change].append(row)
    found = {}
    for setting in sorted(
        grouped, key=lambda s: (s.place.model, s.place.site, s.place.sae or "", s.error, s.positions)
    ):
        effects: Effects = {}
        for (variant, change), rows in sorted(
            grouped[setting].items(), key=lambda item: (place(item[0][0]), -item[0][1].beta)
        ):
            effects.setdefault(variant, {})[change] = _effect(rows)
        accuracy = next(iter(grouped[setting].values()))[0]["acc_ref"]
        found[setting] = (effects, accuracy)
    return found


def _effect(rows: Sequence[dict[str, Any]]) -> Effect:
    on = mean_bar([Bar(row["dacc"], row["dacc_low"], row["dacc_high"]) for row in rows])
    off = [
        Bar(r["offclass_dacc"], r["offclass_low"], r["offclass_high"]) for r in rows if r["offclass_dacc"] is not None
    ]
    return Effect(on, mean_bar(off) if off else None, len({row["seed"] for row in rows}))


def is_removal(change: Change) -> bool:
    """Whether less accuracy is what it is after."""
    return change.beta < (1 if change.op == "scale" else 0)


def say_change(change: Change) -> str:
    """enhance ×2, remove ×0, add +1"""
    if change.op == "add":
        return f"add {change.beta:+g}".replace("-", "−")
    return f"{'remove' if is_removal(change) else 'enhance'} ×{change.beta:g}"


def winner(effects: Effects, change: Change) -> str | None:
    """The method with the largest effect in the wanted direction, if any has one; the truth takes no part."""
    sign = -1 if is_removal(change) else 1
    values = {v: sign * of[change].on.value for v, of in effects.items() if change in of and not is_truth(v)}
    best = max(values, key=lambda v: values[v], default=None)
    return best if best is not None and values[best] > 0 else None


def _changes(effects: Effects) -> list[Change]:
    found = {change for of in effects.values() for change in of}
    return sorted(found, key=lambda c: (c.op != "scale", -c.beta))


def _winners(
    settings: dict[Setting, tuple[Effects, float]], variants: Variants, names: PlaceNames, tests: Judgements
) -> Html:
    changes = _changes(
        {
            f"{i}": {c: e for of in effects.values() for c, e in of.items()}
            for i, (effects, _) in enumerate(settings.values())
        }
    )
    columns = [
        Column("units"),
        Column("accuracy", True, "share of right answers without a change"),
        *(Column(say_change(c)) for c in changes),
    ]
    rows = []
    for setting, (effects, accuracy) in settings.items():
        cells: list[Any] = []
        for change in changes:
            best = winner(effects, change)
            if best is None:
                cells.append(
                    Cell("nobody has the wanted effect" if any(change in of for of in effects.values()) else "–")
                )
                continue
            measured = effects[best][change].on.value
            contest = tests.contest(setting.place, f"dacc {change} {setting.error}", best, is_removal(change))
            cells.append(
                Cell(
                    tag(
                        "span",
                        variants.label(best),
                        f" {_points(measured)}",
                        tag("span", contest.words, class_="won") if contest.words else None,
                    ),
                    best,
                )
            )
        rows.append([names.title(setting.place) + setting.words, Cell(percent(accuracy), accuracy), *cells])
    return join([tag("h3", "Who has the largest effect"), data_table("Largest effect at each place", columns, rows)])


def _block(
    data: ReportData,
    setting: Setting,
    effects: Effects,
    accuracy: float,
    variants: Variants,
    names: PlaceNames,
    tests: Judgements,
) -> Html:
    """One row for each method; all bars of one change share a scale, so that off-class is compared with on-class."""
    changes = _changes(effects)
    columns = [Column("method")]
    for change in changes:
        columns += [
            Column(say_change(change), True, "accuracy on the class, percentage points"),
            Column("off class", True, "accuracy on other classes, percentage points"),
        ]
    spans = {c: make_span(b for of in effects.values() if c in of for b in (of[c].on, of[c].off) if b) for c in changes}
    rows = []
    for variant, of in effects.items():
        seeds = max(effect.seeds for effect in of.values())
        row: list[Any] = [Cell(variants.label(variant, seeds), variant)]
        for change in changes:
            row += _pair(variant, change, effects, spans[change], setting, variants, tests)
        rows.append(row)
    title = names.title(setting.place) + setting.words
    seeded = any(e.seeds > 1 for of in effects.values() for e in of.values())
    note = "Over several seeds: the mean, and an interval that holds those of all." if seeded else ""
    head = tag("h3", title, " ", tag("span", f"accuracy {percent(accuracy)} without a change", class_="note"))
    bound = tag("p", note, class_="note") if note else None
    classes = make_classes(
        data, setting.place, setting.error, setting.positions, variants, {c: str(c).replace("x", "×") for c in changes}
    )
    return join([head, data_table(f"Interventions on {title}", columns, rows), bound, classes])


def _pair(
    variant: str,
    change: Change,
    effects: Effects,
    span: bars.Span,
    setting: Setting,
    variants: Variants,
    tests: Judgements,
) -> list[Cell]:
    effect = effects[variant].get(change)
    if effect is None:
        return [Cell("–"), Cell("–")]
    colour = variants.colour(variant)
    contest = tests.contest(setting.place, f"dacc {change} {setting.error}", variant, is_removal(change))
    on = bar_cell(effect.on, span, colour, _points(effect.on.value), winner(effects, change) == variant, contest.words)
    off = bar_cell(effect.off, span, colour, _points(effect.off.value)) if effect.off else Cell("–")
    return [on, off]


def _points(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
