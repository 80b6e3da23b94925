"""Which ways to explain are compared with each other, and take part in the choice of one text per feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress

import numpy as np

from jobs.score_explanations.gathered import Gathered
from miclip_core.explain.alphas import are_enough
from schemas.explain_specs import SEES_IMAGES

METHODS = ("topk", "steering", "informed")


@dataclass(frozen=True, eq=False)
class Group:
    """Ways to explain that are compared with each other: those of one masking, and steering, which needs none.

    places: of each method its candidate, in the order of METHODS.
    """

    masking: str
    places: Mapping[str, int]


def find_groups(found: Gathered, by_iou: bool) -> list[Group]:
    """Candidates by masking; steering alone is a group of its own."""
    places = {
        (method, masking): _candidate(found, method, masking, by_iou)
        for method, masking in dict.fromkeys((v.method, v.masking) for v in found.variants)
    }
    places = {key: place for key, place in places.items() if place is not None}
    maskings = sorted({masking for method, masking in places if method in SEES_IMAGES}, reverse=True) or ["none"]
    groups = []
    for masking in maskings:
        of_each = {method: places.get((method, masking if method in SEES_IMAGES else "none")) for method in METHODS}
        groups.append(Group(masking, {method: place for method, place in of_each.items() if place is not None}))
    return [group for group in groups if group.places]


def _candidate(found: Gathered, method: str, masking: str, by_iou: bool) -> int | None:
    """Of the ways to explain by a method with the features' own direction, such as several alphas, the one with the best
    mean IoU, of those that have one of enough features; without it the one whose alpha was chosen, else the first."""
    places = [
        place
        for place, variant in enumerate(found.variants)
        if (variant.method, variant.masking, variant.direction) == (method, masking, "sae")
    ]
    if not places:
        return None
    if not by_iou:
        return min(places, key=lambda place: (found.variants[place].alpha_asked != "auto", place))
    known = {place: values[~np.isnan(values)] for place in places for values in [found.values(place, "iou")]}
    fit = compress(places, are_enough([len(values) for values in known.values()]))
    return max(fit, key=lambda place: (known[place].mean() if len(known[place]) else 0.0, -place))
