"""The units that methods gave names: which methods looked at which place, what they call its units, and where they see a concept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from cluster.report.data import ReportData
from cluster.report.sections.places import Place, PlaceNames, place_of
from cluster.report.sections.variants import is_truth, place

COLUMNS = ["stage", "unit", "concept", "rank", "score", "is_dead"]
NAMES = 3
"""Names of a unit that a card shows for each method."""


class Method(NamedTuple):
    """One method at one place: its name, and the stage whose rows are shown (of several seeds or settings the first)."""

    variant: str
    stage: str

    @property
    def is_truth(self) -> bool:
        """Whether it knows the labels."""
        return is_truth(self.variant)


class Named(NamedTuple):
    """One place whose units have names from one list of concepts; `lists` are the lists of units of all its methods."""

    number: int
    place: Place
    title: str
    methods: tuple[Method, ...]
    lists: int

    @property
    def stages(self) -> list[str]:
        """Of its methods."""
        return [method.stage for method in self.methods]


class Found(NamedTuple):
    """What is known of a place as a whole.

    first: method's stage -> unit -> its first name. located: method's stage -> concept -> (unit, score), best first. A unit
    that a method holds for dead has no name by it.
    """

    first: dict[str, dict[int, str]]
    located: dict[str, dict[str, list[tuple[int, float]]]]


def load_named(data: ReportData) -> list[Named]:
    """Every place that was described, by model, site and SAE; once for each list of concepts that it was described with."""
    rows = data.table(
        "descriptions", ["stage", "model", "site", "sae", "variant", "seed", "concepts", "concepts_located"]
    ).to_pylist()
    groups: dict[tuple[Place, tuple[str, ...]], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[place_of(row), _concepts(data, row)].append(row)
    names = PlaceNames(data)
    lists: dict[Place, set[tuple[str, ...]]] = defaultdict(set)
    for of, concepts in groups:
        lists[of].add(concepts)
    found: list[Named] = []
    for (of, concepts), members in sorted(groups.items(), key=lambda item: (item[0][0].key, item[0][1])):  # fmt: skip
        title = names.title(of)
        if len(lists[of]) > 1:
            title += f" · {len(concepts):,} concepts from {concepts[0]}"
        methods = _methods(members)
        shown = {method.stage for method in methods}
        lists_of_units = sum(row["concepts_located"] for row in members if row["stage"] in shown)
        found.append(Named(len(found), of, title, methods, lists_of_units))
    return found


def _concepts(data: ReportData, row: dict[str, Any]) -> tuple[str, ...]:
    """The names that a stage chose from."""
    published = data.stages.get(row["stage"])
    named = published.stage.params.get("concepts") if published else None
    return tuple(map(str, named)) if isinstance(named, (list, tuple)) else (f"{row['concepts']}",)


def _methods(rows: Sequence[dict[str, Any]]) -> tuple[Method, ...]:
    first: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: (place(row["variant"]), row["seed"] or 0, row["stage"])):
        first.setdefault(row["variant"], row["stage"])
    return tuple(Method(variant, stage) for variant, stage in first.items())


def load_found(data: ReportData, named: Named, most: int) -> Found:
    """First names of all its units, and its lists of all concepts, of at most so many units each."""
    first: dict[str, dict[int, str]] = {stage: {} for stage in named.stages}
    located: dict[str, dict[str, list[tuple[int, float]]]] = {stage: {} for stage in named.stages}
    where = {"stage": named.stages, "direction": "describe", "rank": [0], "is_dead": [False]}
    table = data.table("unit_concepts", ["stage", "unit", "concept"], where)
    for stage, unit, concept in zip(*(table[c].to_pylist() for c in ("stage", "unit", "concept"))):
        first[stage][unit] = concept
    where = {"stage": named.stages, "direction": "localise", "rank": list(range(most))}
    table = data.table("unit_concepts", COLUMNS, where).sort_by("rank")
    for row in table.to_pylist():
        located[row["stage"]].setdefault(row["concept"], []).append((row["unit"], row["score"]))
    return Found(first, located)


def load_names(data: ReportData, named: Named, units: Sequence[int]) -> dict[tuple[str, int], list[tuple[str, float]]]:
    """(stage of a method, unit) -> its first names with their scores; nothing of a unit that is dead to the method."""
    if not units:
        return {}
    where = {
        "stage": named.stages,
        "direction": "describe",
        "unit": list(units),
        "rank": list(range(NAMES)),
        "is_dead": [False],
    }
    found: dict[tuple[str, int], list[tuple[str, float]]] = defaultdict(list)
    for row in data.table("unit_concepts", COLUMNS, where).sort_by("rank").to_pylist():
        found[row["stage"], row["unit"]].append((row["concept"], row["score"]))
    return dict(found)
