"""From a concept to its units: at every place and by every method, as data that the page's script shows for what is searched."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cluster.report.html import Html, join, script_json, tag
from cluster.report.sections.named import Found, Named
from cluster.report.sections.variants import Variants

FINDER_BYTES = 1_200_000
LIST_BYTES, UNIT_BYTES = 14, 11
"""Of one method's list for one concept at one place, and of each unit in it; as text."""
LENGTHS = (5, 3, 1)
"""Units of a list, from what we would like down to what is still worth it."""


class Index(NamedTuple):
    """What the finder knows: at most `length` units of each list, for `concepts`, the most found ones first."""

    concepts: tuple[str, ...]
    length: int
    left_out: int


def list_length(lists: int, budget: int = FINDER_BYTES) -> int:
    """Units of each of so many lists that stay in the budget; one where none do."""
    return next((n for n in LENGTHS if lists * (LIST_BYTES + n * UNIT_BYTES) <= budget), LENGTHS[-1])


def plan_index(found: Sequence[Found], budget: int = FINDER_BYTES) -> Index:
    """The longest lists of all concepts that stay in the budget; if none do, as many concepts as fit, with lists of one."""
    lists = Counter(concept for f in found for of in f.located.values() for concept in of)
    concepts = sorted(lists, key=lambda concept: (-lists[concept], concept))
    length = list_length(lists.total(), budget)
    kept, left = 0, budget
    for concept in concepts:
        left -= lists[concept] * (LIST_BYTES + length * UNIT_BYTES)
        kept += left >= 0
    return Index(tuple(sorted(concepts[:kept])), length, len(concepts) - kept)


def make_finder(
    index: Index,
    named: Sequence[Named],
    found: Sequence[Found],
    variants: Variants,
    pictures: Mapping[tuple[int, int], int],
) -> Html:
    """An empty place that the script fills. pictures: (place, unit) -> number of the image that drives it most."""
    told = {
        "places": [n.title for n in named],
        "methods": [{"name": name, "colour": variants.colour(name)} for name in variants.names],
        "concepts": index.concepts,
        "lists": _lists(index, named, found, variants),
        "pictures": {f"{place}-{unit}": number for (place, unit), number in sorted(pictures.items())},
    }
    hint = tag("p", "Type a concept, or choose one: every place and method answers with its units.", class_="note hint")
    return join([tag("div", hint, tag("div", class_="answers"), class_="finder"), script_json(told, id="finder")])  # fmt: skip


def _lists(
    index: Index, named: Sequence[Named], found: Sequence[Found], variants: Variants
) -> list[dict[str, dict[str, list[Any]]]]:
    """For every concept: place -> method -> [units that have it as first name, unit, score, unit, score, ...]."""
    numbers = {concept: i for i, concept in enumerate(index.concepts)}
    out: list[dict[str, dict[str, list[Any]]]] = [defaultdict(dict) for _ in index.concepts]
    for n, f in zip(named, found, strict=True):
        for method in n.methods:
            counts = Counter(f.first[method.stage].values())
            for concept, units in f.located[method.stage].items():
                if concept not in numbers:
                    continue
                flat = [v for unit, score in units[: index.length] for v in (unit, _short(score))]
                out[numbers[concept]][str(n.number)][str(variants.colour(method.variant))] = [counts[concept], *flat]
    return [dict(of) for of in out]


def _short(score: float) -> float | None:
    """Three digits of a number that JSON can hold."""
    return float(f"{score:.3g}") if score == score and abs(score) != float("inf") else None


def best_units(index: Index, found: Found) -> list[int]:
    """The unit at the head of every list that the finder shows of one place."""
    kept = set(index.concepts)
    return sorted({units[0][0] for of in found.located.values() for concept, units in of.items() if concept in kept})
