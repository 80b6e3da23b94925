"""What becomes of accuracy when the units that a method found for a class are changed: bars with intervals, off-class beside them."""

from __future__ import annotations

from typing import Any

from cluster.report import bars
from cluster.report.bars import bar_cell, make_span
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.numbers import percent
from cluster.report.section import Section
from cluster.report.sections.by_class import make_classes
from cluster.report.sections.effects import (
    Effects,
    Setting,
    changes_of,
    load_effects,
    say_change,
    wanted,
    winners,
)
from cluster.report.sections.judged import Contest, Judgements
from cluster.report.sections.places import PlaceNames
from cluster.report.sections.variants import APART, Variants
from cluster.report.tables import Cell, Column, data_table
from schemas.intervene import Change


def render(data: ReportData) -> Html:
    """Who wins where, then the bars of every place."""
    settings = load_effects(data)
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


def _winners(
    settings: dict[Setting, tuple[Effects, float]], variants: Variants, names: PlaceNames, tests: Judgements
) -> Html:
    changes = sorted(
        {c for effects, _ in settings.values() for c in changes_of(effects)}, key=lambda c: (c.op != "scale", -c.beta)
    )
    columns = [
        Column("units"),
        Column("accuracy", True, "share of right answers without a change"),
        *(Column(say_change(c)) for c in changes),
    ]
    rows = [
        [names.title(setting.place) + setting.words, Cell(percent(accuracy), accuracy),
         *(_winner(setting, effects, change, variants, tests) for change in changes)]
        for setting, (effects, accuracy) in settings.items()
    ]  # fmt: skip
    return join([tag("h3", "Who has the largest effect"), data_table("Largest effect at each place", columns, rows)])


def _winner(setting: Setting, effects: Effects, change: Change, variants: Variants, tests: Judgements) -> Cell:
    best = winners(effects, change)
    if not best:
        return Cell("nobody has the wanted effect" if change in changes_of(effects) else "–")
    value = _points(effects[best[0]][change].on.value)
    if len(best) > 1:
        return Cell(
            tag("span", [variants.label(v) for v in best], f" {value}", tag("span", "the same effect", class_="won")),
            best[0],
        )
    verdict = _contest(setting, effects, change, best[0], tests).verdict
    more = tag("span", verdict, class_="won") if verdict else None
    return Cell(tag("span", variants.label(best[0]), f" {value}", more), best[0])


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
    changes = changes_of(effects)
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
    stages = {stage: name for name, of in effects.items() for effect in of.values() for stage in effect.stages}
    classes = make_classes(data, stages, variants, {c: str(c).replace("x", "×") for c in changes})
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
    contest = _contest(setting, effects, change, variant, tests)
    on = bar_cell(effect.on, span, colour, _points(effect.on.value), variant in winners(effects, change), contest.words)
    off = bar_cell(effect.off, span, colour, _points(effect.off.value)) if effect.off else Cell("–")
    return [on, off]


def _contest(setting: Setting, effects: Effects, change: Change, name: str, tests: Judgements) -> Contest:
    """By the tests of the stage that judged just these interventions."""
    judge = tests.judge_of(effects[name][change].stages)
    measure = f"dacc {change} {setting.error}"
    return tests.contest(judge, setting.place, measure, name.partition(APART)[0], wanted(change))


def _points(value: float) -> str:
    rounded = round(value, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"
