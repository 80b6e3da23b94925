"""The zoo worker: the graph of all buddies, what is shared by how many models, and the entries of a dictionary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.mine_rosetta.plan import members_of
from jobs.mine_rosetta.zoo import Vertices, graph_of, read_all_buddies, read_buddies, read_vertices
from jobs.mine_rosetta.zoo_entries import entries_of_anchors
from jobs.mine_rosetta.zoo_rows import ZooRows
from jobs.protocol import Inputs, Keep, Part, Setting
from miclip_core.rosetta.cliques import Cliques, maximal_cliques
from miclip_core.rosetta.clusters import Clusters, concept_clusters
from miclip_core.rosetta.components import components
from miclip_core.rosetta.entries import Entries, entries_of_cliques
from miclip_core.rosetta.graph import ZooGraph
from miclip_core.rosetta.tuples import Star, Tuples
from schemas.plans import Plan, Shard

Found = tuple[str, pa.RecordBatch]
"""Rows and the table that they are for."""


class ZooWorker:
    """Serves zoos; `notes` says which lists were cut short."""

    def __init__(self, setting: Setting) -> None:
        self._plans = {plan.digest: plan for plan in setting.plans}
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part]:
        """All tables of every stage."""
        self.notes.clear()
        for stage in stages:
            zoo = _Zoo(self._plans[stage], inputs, self.notes)
            for table, batch in zoo.mine():
                if batch.num_rows:
                    yield Part(stage, table, batch)


class _Zoo:
    """One zoo: its units, their buddies and what was found so far."""

    def __init__(self, plan: Plan, inputs: Inputs, notes: list[str]) -> None:
        self._stage, self._inputs, self._notes = plan.stage, inputs, notes
        self._params: Any = plan.stage.params
        self._vertices: Vertices = read_vertices(inputs, plan.stage, members_of(plan))
        self._pairs = read_all_buddies(inputs, plan.stage, self._vertices)
        self._rows = ZooRows(plan.digest, self._vertices)

    def mine(self) -> Iterator[Found]:
        """Rows of every table: under one neighbour and under k what is about the graph, under k all else."""
        for k in sorted({1, max(self._params["k"])}):
            graph = self._graph(k)
            cliques = self._cliques(graph, k)
            yield from self._about(graph, cliques, k)
        self._pairs.clear()  # the graph under k holds them
        tuples: dict[int, np.ndarray] = {}
        clusters: dict[int, Clusters] = {}
        for anchor in self._params["anchors"]:
            star = self._star(graph, anchor)
            found = self._tuples(star, anchor)
            clusters[anchor], tuples[anchor] = self._clusters(star, anchor), found.sets
            yield from (("rosetta_tuples", rows) for rows in self._rows.tuples(anchor, found))
            yield "rosetta_clusters", self._rows.clusters(anchor, clusters[anchor])
        yield "rosetta_anchors", self._rows.anchors(tuples)
        yield "rosetta_entries", self._rows.entries(*self._entries(graph, cliques, tuples, clusters))

    def _graph(self, k: int) -> ZooGraph:
        """The graph of buddies among the k nearest."""
        return graph_of(self._vertices, {members: buddies.within(k, k) for members, buddies in self._pairs.items()})

    def _cliques(self, graph: ZooGraph, k: int) -> Cliques:
        # two models have no larger cliques than pairs
        least = min(self._params["min_clique"], len(self._vertices.models))
        cliques = maximal_cliques(graph, least, self._params["most"])
        self._note_cut(cliques.truncated, f"cliques of buddies among the {k} nearest")
        return cliques

    def _about(self, graph: ZooGraph, cliques: Cliques, k: int) -> Iterator[Found]:
        """The rows about the graph of buddies among the k nearest."""
        yield "rosetta_universality", self._rows.universality(k, graph)
        yield from (("rosetta_cliques", rows) for rows in self._rows.cliques(k, cliques))
        yield "rosetta_components", self._rows.components(k, graph, components(graph))
        for (a, b), buddies in self._pairs.items():
            yield "rosetta_layers", self._rows.layers(k, a, b, buddies.within(k, k))

    def _star(self, graph: ZooGraph, anchor: int) -> Star:
        """The units of an anchor with a buddy in every other model."""
        every = self._vertices
        own = int(every.model_of_member[anchor])
        others = [number for number in range(len(every.models)) if number != own]
        return Star(graph, np.arange(every.first[anchor], every.first[anchor + 1]), others)

    def _tuples(self, star: Star, anchor: int) -> Tuples:
        most = self._params["most"]
        found = star.all_tuples(most) if self._params["tuples"] == "full" else star.best_tuples(most)
        self._note_cut(found.truncated, f"tuples around {self._vertices.members[anchor].name}")
        return found

    def _clusters(self, star: Star, anchor: int) -> Clusters:
        """All units of an anchor that have a tuple, listed or not, by how they hang together."""
        own = read_buddies(self._inputs, self._stage, f"self.{anchor}", self._vertices, anchor, anchor)
        return concept_clusters((star.units - self._vertices.first[anchor]).astype(np.int32), own)

    def _entries(
        self, graph: ZooGraph, cliques: Cliques, tuples: dict[int, np.ndarray], clusters: dict[int, Clusters]
    ) -> tuple[Entries, list[str]]:
        """The entries and the origin of each."""
        most = self._params["entries"]
        if self._params["entries_from"] == "clusters":
            return entries_of_anchors(clusters, tuples, graph, self._vertices, most)
        found = entries_of_cliques(cliques, graph, most)
        return found, ["clique"] * len(found.source)

    def _note_cut(self, truncated: bool, what: str) -> None:
        if truncated:
            self._notes.append(
                f"{self._stage.subject}: there are more {what} than the {self._params['most']} that are listed; a larger `most` "
                "lists more, and a smaller k leaves fewer"
            )


def open_worker(setting: Setting, inputs: Inputs) -> ZooWorker:
    """Nothing is read before there is work."""
    return ZooWorker(setting)
