"""How well the units that were found for concepts are those that stand for them: precision, and the best that it can be."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """One concept: share of tau places that hold a unit standing for it, and that share if all such units were first."""

    value: float
    ceiling: float


def precision_at(
    located: Mapping[str, Sequence[int]], truth: Mapping[int, str], offered: Collection[str], tau: int
) -> dict[str, Precision]:
    """Precision@tau of every concept that is offered and that at least one unit stands for, by concept in order of name.

    located: concept -> its units, the best first; what is behind place tau does not count, and a list that is shorter
    leaves its other places wrong. truth: unit -> the one concept that it stands for; a unit that stands for nothing is
    not in it. offered: the concepts that units were sought for.

    Raises:
        ValueError: a tau below 1, or a unit twice in a list.
    """
    if tau < 1:
        raise ValueError(f"tau is {tau}; expected at least 1")
    standing: dict[str, int] = {}
    for concept in truth.values():
        standing[concept] = standing.get(concept, 0) + 1
    found = {}
    for concept in sorted(standing.keys() & set(offered)):
        first = list(located.get(concept, ()))[:tau]
        if len(set(first)) < len(first):
            raise ValueError(f"concept {concept!r}: a unit is twice among {first}")
        hits = sum(truth.get(unit) == concept for unit in first)
        found[concept] = Precision(hits / tau, min(standing[concept], tau) / tau)
    return found
