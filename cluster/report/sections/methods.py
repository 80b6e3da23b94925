"""How right each method is, with intervals, and which differences between methods are real, in plain words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.report import bars
from cluster.report.bars import Bar, bar_cell, make_span, mean_bar
from cluster.report.data import ReportData
from cluster.report.html import Html, join, tag
from cluster.report.numbers import short_number
from cluster.report.section import Section
from cluster.report.sections.judged import LEVEL, Judgements, is_out_of_reach, is_real, leaders, pairs_once
from cluster.report.sections.places import Place, PlaceNames, place_of
from cluster.report.sections.settings import Settings
from cluster.report.sections.variants import Variants, place
from cluster.report.tables import Cell, Column, data_table

MEASURES = {
    "accuracy": ("right names", "share of units whose first name is what they stand for"),
    "clip_score": ("nearness (CLIP)", "mean cosine of the first name and the truth in the text space of the CLIP"),
    "sentence_score": ("nearness (sentences)", "mean cosine of the first name and the truth by a sentence encoder"),
    "precision": (
        "right units",
        "share of a concept's located units that stand for it; dashed: what a perfect method would have",
    ),
}
Scores = dict[str, dict[str, list[dict[str, Any]]]]
"""Measure -> method -> a row for each seed."""
Judged = tuple[Place, str]
"""A place and the evaluate stage that judged it; what another stage judged is never mixed with it."""


def render(data: ReportData) -> Html:
    """For each place, as each evaluate stage judged it, a table of bars and what they come to, then all tests."""
    places: dict[tuple[Place, str], Scores] = {}
    for row in data.table("method_scores").to_pylist():
        if row["measure"] in MEASURES and row["value"] is not None:
            of = places.setdefault((place_of(row), row["stage"]), {})
            of.setdefault(row["measure"], {}).setdefault(row["variant"], []).append(row)
    variants, names, tests = Variants(data), PlaceNames(data), Judgements(data)
    lead = tag("p", "Larger is better everywhere here; bars are means with 95 % bootstrap intervals. A method counts as better than "
               f"another if a paired test says so after Holm's correction over all comparisons (p below {LEVEL}). What interventions "
               "show of methods has its own section; their tests are in the table below.")  # fmt: skip
    titles = _titles(data, [*places, *((place_of(row), row["stage"]) for row in tests.rows)], names)
    ordered = sorted(places, key=lambda key: (key[0].key, titles[key], key[1]))
    blocks = [_block(key, places[key], variants, titles[key], tests) for key in ordered]
    return join([lead, *blocks, _tests(tests, titles, variants)])


SECTION = Section("methods", "Methods", ("method_scores",), render, (*bars.ASSETS, "units.css"))


def _titles(data: ReportData, judged: Iterable[Judged], names: PlaceNames) -> dict[Judged, str]:
    """The place; where several evaluate stages judged it, also what tells these apart."""
    stages: dict[Place, list[str]] = defaultdict(list)
    for of, stage in sorted(set(judged), key=lambda key: (key[0].key, key[1])):
        stages[of].append(stage)
    settings, found = Settings(data), {}
    for of, several in stages.items():
        read = {name for stage in several for name in data.stages[stage].stage.inputs if "." in name}
        for stage, words in zip(several, settings.tell(several, read), strict=True):
            found[of, stage] = names.title(of) + (f" · {words}" if words else "")
    return found


def _block(judged: Judged, scores: Scores, variants: Variants, title: str, tests: Judgements) -> Html:
    of, judge = judged
    measures = [measure for measure in MEASURES if measure in scores]
    shown = sorted({v for by in scores.values() for v in by}, key=place)
    made = {m: {v: _bar(rows) for v, rows in scores[m].items()} for m in measures}
    limits = {m: _limit(scores[m]) for m in measures}
    spans = {m: make_span(made[m].values(), *filter(None, [limits[m]])) for m in measures}
    best = {m: leaders({v: bar.value for v, bar in made[m].items()}) for m in measures}
    n = {m: max(row["n"] for rows in scores[m].values() for row in rows) for m in measures}
    counted = {m: "concepts" if m == "precision" else "units" for m in measures}
    columns = [
        Column("method"),
        *(Column(f"{MEASURES[m][0]}, {n[m]:,} {counted[m]}", True, MEASURES[m][1]) for m in measures),
    ]
    rows = []
    for variant in shown:
        seeds = len({row["seed"] for m in measures for row in scores[m].get(variant, [])})
        row: list[Any] = [Cell(variants.label(variant, seeds), variant)]
        for m in measures:
            bar = made[m].get(variant)
            words = tests.contest(judge, of, m, variant).words
            row.append(
                bar_cell(
                    bar,
                    spans[m],
                    variants.colour(variant),
                    short_number(bar.value) if bar else "",
                    variant in best[m],
                    words,
                    limits[m],
                )
            )
        rows.append(row)
    said = tag("ul", (tag("li", _verdict(judged, m, made[m], tests)) for m in measures), class_="verdicts")
    return join([tag("h3", title), said, data_table(f"Methods on {title}", columns, rows)])


def _bar(rows: Sequence[dict[str, Any]]) -> Bar:
    return mean_bar([Bar(row["value"], row["low"], row["high"]) for row in rows])


def _limit(by: Mapping[str, Sequence[dict[str, Any]]]) -> float | None:
    found = {row["ceiling"] for rows in by.values() for row in rows if row["ceiling"] is not None}
    return max(found, default=None)


def _verdict(judged: Judged, measure: str, made: Mapping[str, Bar], tests: Judgements) -> str:
    """Who is ahead by one measure, and of whom that can be said."""
    what = MEASURES[measure][0]
    ahead = leaders({variant: bar.value for variant, bar in made.items()})
    if not ahead:
        return f"{what}: nobody was judged."
    value = short_number(made[ahead[0]].value)
    if len(ahead) > 1:
        return f"{what}: {', '.join(ahead)} are ahead alike with {value}."
    of, judge = judged
    contest = tests.contest(judge, of, measure, ahead[0])
    text = f"{what}: {ahead[0]} is ahead with {value}"
    if not contest.against:
        return f"{text}; it was compared with no other method."
    if not contest.beats:
        return f"{text}, but not told apart from the others (p ≥ {LEVEL} after Holm)."
    unclear = [v for v in contest.against if v not in contest.beats]
    text += f" and better than {', '.join(contest.beats)}"
    return text + (f"; not told apart from {', '.join(unclear)} (p ≥ {LEVEL} after Holm)." if unclear else ".")


def _tests(tests: Judgements, titles: Mapping[Judged, str], variants: Variants) -> Html | None:
    """Each pair once, real differences first."""
    rows = sorted(
        pairs_once(tests.rows), key=lambda r: (not is_real(r), r["p_holm"] if r["p_holm"] is not None else 2.0)
    )
    if not rows:
        return None
    columns = [
        Column("units"), Column("measure"), Column("more"), Column("than"), Column("by", True, "mean difference"),
        Column("95 % interval", True), Column("pairs", True, "units, concepts or classes that both have a value for"), Column("test"),
        Column("p", True), Column("p, Holm", True, "corrected over all comparisons"), Column("verdict"),
    ]  # fmt: skip
    table = [
        [titles[place_of(r), r["stage"]], r["measure"], variants.label(r["variant"]), variants.label(r["against"]), _number(r["difference"]),
         "–" if r["low"] is None else f"{short_number(r['low'])} to {short_number(r['high'])}", r["n_pairs"], (r["test"] or "too few pairs").replace("_", " "),
         _number(r["p_value"]), _number(r["p_holm"]),
         tag("span", "a difference", class_="state good") if is_real(r) else tag("span", "not told apart", class_="state")]
        for r in rows
    ]  # fmt: skip
    words = f"{sum(map(is_real, rows)):,} of {len(rows):,} differences stand after correction."
    judged = defaultdict(list)
    for row in tests.rows:
        judged[row["stage"]].append(row)
    if any(map(is_out_of_reach, judged.values())):
        words += (
            " Of an evaluate stage with so few pairs none can: an exact test of n pairs has no p below 2^(1 − n), and Holm multiplies "
            "the smallest p by the number of comparisons. More classes or units, or fewer comparisons in a stage, would."
        )
    return join(
        [
            tag("h3", "All comparisons"),
            tag("p", words),
            data_table("Comparisons of methods", columns, table, "SELECT * FROM method_tests has all."),
        ]
    )


def _number(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(short_number(value), value)
