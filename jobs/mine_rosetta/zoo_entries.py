"""Which groups of units become entries of the dictionary of a zoo: cliques, or clusters of its anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from jobs.mine_rosetta.zoo import Vertices
from miclip_core.rosetta.clusters import Clusters
from miclip_core.rosetta.entries import Entries, entries_of_clusters
from miclip_core.rosetta.graph import ZooGraph


def entries_of_anchors(
    clusters: Mapping[int, Clusters], tuples: Mapping[int, np.ndarray], graph: ZooGraph, vertices: Vertices, most: int
) -> tuple[Entries, list[str]]:
    """At most so many clusters of all anchors with their tuples (as `Tuples.sets`), and of each entry which anchor's it is.

    The largest cluster of every anchor, then the second of each, and so on; each if it shares no unit with those taken, so
    that what several anchors find is shown once.
    """
    found = [
        entries_of_clusters(clusters[m], tuples[m], graph, int(vertices.first[m]), len(vertices.unit)) for m in clusters
    ]
    names = [f"cluster of {vertices.members[m].name}" for m in clusters]
    chosen = _disjoint([np.split(one.vertex, _starts(one)[1:-1]) for one in found], most)
    parts = [_entry(found[place], number) for place, number in chosen]
    return _join(parts), [names[place] for place, _ in chosen]


def _starts(entries: Entries) -> np.ndarray:
    return np.searchsorted(entries.entry, np.arange(len(entries.source) + 1))


def _disjoint(groups: Sequence[Sequence[np.ndarray]], most: int) -> list[tuple[int, int]]:
    """(place, number) of the groups of vertices that are taken, in turns over the places."""
    turns = sorted((number, place) for place, own in enumerate(groups) for number in range(len(own)))
    taken: set[int] = set()
    chosen: list[tuple[int, int]] = []
    for number, place in turns:
        group = groups[place][number].tolist()
        if len(chosen) < most and taken.isdisjoint(group):
            taken.update(group)
            chosen.append((place, number))
    return chosen


def _entry(entries: Entries, number: int) -> Entries:
    """One entry of several."""
    rows = entries.entry == number
    return Entries(
        entries.entry[rows],
        entries.vertex[rows],
        entries.mean_r[rows],
        entries.is_representative[rows],
        entries.source[number : number + 1],
    )


def _join(parts: Sequence[Entries]) -> Entries:
    """Entries numbered anew."""
    none = Entries(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int64))
    numbered = [none, *(replace(part, entry=np.full_like(part.entry, i)) for i, part in enumerate(parts))]
    return Entries(
        *(
            np.concatenate([getattr(part, name) for part in numbered])
            for name in ("entry", "vertex", "mean_r", "is_representative", "source")
        )
    )
