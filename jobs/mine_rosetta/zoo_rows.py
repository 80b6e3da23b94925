"""What was found in the graph of a zoo, as rows of its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.mine_rosetta.zoo import Vertices, whose
from jobs.rows import make_batch
from miclip_core.rosetta.buddies import NONE, Buddies
from miclip_core.rosetta.cliques import Cliques
from miclip_core.rosetta.clusters import Clusters
from miclip_core.rosetta.components import Components
from miclip_core.rosetta.entries import Entries
from miclip_core.rosetta.graph import ZooGraph, best_r, cores, universality
from miclip_core.rosetta.layers import count_by_site
from miclip_core.rosetta.tuples import Tuples, jaccard
from miclip_core.zoo.shipped import share_targets

ROWS_AT_ONCE = 2**16


@dataclass(frozen=True, eq=False)
class ZooRows:
    """Makes rows of one stage; vertices are those of its zoo."""

    stage: str
    vertices: Vertices

    def universality(self, k: int, graph: ZooGraph) -> pa.RecordBatch:
        """One row for each unit that was compared, whether it has a buddy or not."""
        every = self.vertices
        shown = np.flatnonzero(every.in_zoo)
        return make_batch(
            "rosetta_universality",
            {
                "stage": self.stage,
                **every.columns(shown),
                "k": k,
                "depth": every.depth[every.site[shown]],
                "degree": universality(graph)[shown],
                "models": len(every.models) - 1,
                "best_r": or_null(best_r(graph)[shown]),
                "kurtosis": or_null(every.kurtosis[shown]),
                "active": every.active[shown],
            },
        )

    def cliques(self, k: int, found: Cliques) -> Iterator[pa.RecordBatch]:
        """One row per unit of a clique, by clique and vertex."""
        for start, vertices in _blocks(found.vertices):
            number, column = (vertices != NONE).nonzero()
            clique = start + number
            yield make_batch(
                "rosetta_cliques",
                {
                    "stage": self.stage,
                    "k": k,
                    "clique": clique,
                    "size": found.size[clique],
                    **self.vertices.columns(vertices[number, column]),
                    "min_r": found.min_r[clique],
                    "mean_r": found.mean_r[clique],
                    "is_truncated": found.truncated,
                },
            )

    def components(self, k: int, graph: ZooGraph, found: Components) -> pa.RecordBatch:
        """One row per unit with a buddy, by component and vertex."""
        shown = np.flatnonzero(found.of_vertex >= 0)
        shown = shown[np.argsort(found.of_vertex[shown], kind="stable")]
        number = found.of_vertex[shown]
        return make_batch(
            "rosetta_components",
            {
                "stage": self.stage,
                "k": k,
                "component": number.astype(np.int64),
                "units": found.units[number].astype(np.int64),
                "models": found.members[number],
                "density": found.density[number].astype(np.float32),
                "longest_path": found.longest_path[number],
                "is_path_exact": found.is_path_exact[number],
                "core": cores(graph)[shown],
                **self.vertices.columns(shown),
            },
        )

    def layers(self, k: int, a: int, b: int, buddies: Buddies) -> pa.RecordBatch:
        """One row for every two sites of two members, also where no buddies join them."""
        every = self.vertices
        members = every.members[a], every.members[b]
        of_a, of_b = (
            every.site[every.first[m] + units] - every.site[every.first[m]]
            for m, units in ((a, buddies.a), (b, buddies.b))
        )
        counts, medians = count_by_site(of_a, of_b, buddies.r, len(members[0].sites), len(members[1].sites))
        at = np.indices(counts.shape).reshape(2, -1)
        columns: dict[str, Any] = {"stage": self.stage, "k": k, "buddies": counts.ravel()}
        for side, member, sites in zip("ab", members, at, strict=True):
            columns |= _of_side(side, [member] * len(sites))
            columns[f"site_{side}"] = [member.sites[i].site for i in sites]
            columns[f"depth_{side}"] = np.array([member.sites[i].depth for i in sites], np.float32)
        return make_batch("rosetta_layers", {**columns, "r_p50": or_null(medians.ravel())})

    def tuples(self, anchor: int, found: Tuples) -> Iterator[pa.RecordBatch]:
        """One row per member of a tuple, by tuple and model."""
        for start, vertices in _blocks(found.vertices):
            number, column = np.indices(vertices.shape).reshape(2, -1)
            number += start
            of_anchor = self.vertices.columns(found.anchor[number])
            yield make_batch(
                "rosetta_tuples",
                {
                    "stage": self.stage,
                    **self._of_anchor(anchor),
                    "anchor_site": of_anchor["site"],
                    "anchor_unit": of_anchor["unit"],
                    "tuple": number,
                    **self.vertices.columns(vertices.ravel()),
                    "r": found.r[number, column],
                    "alternatives": found.alternatives[number, column],
                    "mean_r": found.mean_r[number],
                    "min_r": found.min_r[number],
                    "is_truncated": found.truncated,
                },
            )

    def anchors(self, found: Mapping[int, np.ndarray]) -> pa.RecordBatch:
        """One row for every two anchors of different models; found: the tuples of each, as `Tuples.sets`."""
        of = self.vertices.model_of_member
        pairs = [(a, b) for a in found for b in found if a < b and of[a] != of[b]]
        sides: dict[str, Any] = {}
        for side, anchors in (("a", [a for a, _ in pairs]), ("b", [b for _, b in pairs])):
            sides |= _of_side(side, [self.vertices.members[m] for m in anchors])
            sides[f"tuples_{side}"] = np.array([len(found[m]) for m in anchors], np.int64)
        shared = np.array([jaccard(found[a], found[b]) for a, b in pairs], np.float64)
        return make_batch("rosetta_anchors", {"stage": self.stage, **sides, "jaccard": or_null(shared)})

    def clusters(self, anchor: int, found: Clusters) -> pa.RecordBatch:
        """One row per unit of a cluster, by cluster and unit."""
        order = np.argsort(found.cluster, kind="stable")
        number = found.cluster[order]
        units = self.vertices.columns(self.vertices.first[anchor] + found.units[order])
        return make_batch(
            "rosetta_clusters",
            {
                "stage": self.stage,
                **self._of_anchor(anchor),
                "cluster": number,
                "site": units["site"],
                "unit": units["unit"],
                "size": found.size[number],
                "density": found.density[number].astype(np.float32),
                "min_r": or_null(found.min_r[number]),
                "is_split": found.is_split[number],
            },
        )

    def entries(self, found: Entries, origins: Sequence[str]) -> pa.RecordBatch:
        """One row per unit of an entry; origins: of each entry."""
        model = self.vertices.model[found.vertex]
        models = [sorted(set(model[found.entry == entry].tolist())) for entry in range(len(origins))]
        names = self.vertices.models
        alike = pa.array([share_targets(names[i] for i in own) for own in models], pa.bool_())
        return make_batch(
            "rosetta_entries",
            {
                "stage": self.stage,
                "entry": found.entry,
                "origin": pa.array(origins, pa.string()).take(pa.array(found.entry)),
                "models": np.array([len(own) for own in models], np.int32)[found.entry],
                "size": np.bincount(found.entry).astype(np.int32)[found.entry],
                **self.vertices.columns(found.vertex),
                "mean_r": or_null(found.mean_r),
                "is_representative": found.is_representative,
                "shares_training": alike.take(pa.array(found.entry)),
            },
        )

    def _of_anchor(self, anchor: int) -> dict[str, str | None]:
        member = self.vertices.members[anchor]
        return {"anchor_model": member.model, "anchor_sae": whose([member])["sae"][0]}


def _blocks(vertices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Vertices [N, any] a few at a time with the number of the first, so that rows take little memory however many there are."""
    step = max(1, ROWS_AT_ONCE // max(1, vertices.shape[1]))
    for start in range(0, len(vertices), step):
        yield start, vertices[start : start + step]


def or_null(values: np.ndarray) -> pa.Array:
    """A column whose NaN are null."""
    return pa.array(values, from_pandas=True)


def _of_side(side: str, members: Sequence[Any]) -> dict[str, Any]:
    """The columns that say which member stands on a side of each row."""
    names = whose(members)
    return {f"{name}_{side}": pa.array(names[name], pa.string()) for name in ("model", "sae")}
