"""The geometry worker: units of each concept, their directions in the space of the CLIP, and how groups of them lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jobs.described import Lists, about, read_lists, units_of
from jobs.encoders import WEIGHTS as ENCODER
from jobs.protocol import Inputs, Keep, Part, Setting
from jobs.rows import make_batch
from jobs.sae_files import WEIGHTS as SAE
from jobs.threads import use_cpus
from miclip_core.align.encoder import load_encoder
from miclip_core.evaluate.geometry import Grouping, group_units, lay_out, measure_geometry
from miclip_core.sae.weights import load_sae
from schemas.plans import Plan, Shard

NAMED = 5
"""Concepts that a note names."""


class GeometryWorker:
    """Serves the stages of one model; `notes` says what was left out."""

    def __init__(self, setting: Setting) -> None:
        use_cpus(setting)
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._device = setting.device
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part]:
        """The points and the summary of every stage."""
        self.notes.clear()
        for plan in (self._plans[stage] for stage in stages):
            yield from self._measure(plan, inputs)

    def _measure(self, plan: Plan, inputs: Inputs) -> Iterator[Part]:
        params: Any = plan.stage.params
        lists = read_lists(inputs, plan.stage.inputs["units"], "localise", params["tau"])
        concepts: Any = plan.effort["concepts"]
        localised = units_by_concept(lists, concepts)
        grouping = group_units(localised, params["groups"])
        self._note_absent(plan, grouping)
        vectors_UE = embed_units(plan, inputs, grouping.units, self._device)
        if len(grouping.units):
            yield Part(plan.digest, "geometry_points", self._points(plan, lists, grouping, vectors_UE))
        yield Part(plan.digest, "geometry_summary", _summary(plan, grouping, vectors_UE))

    def _points(self, plan: Plan, lists: Lists, grouping: Grouping, vectors_UE: Tensor) -> pa.RecordBatch:
        params: Any = plan.stage.params
        concepts: Any = plan.effort["concepts"]
        places = np.full((len(vectors_UE), 2), np.nan, np.float32)
        try:
            places = lay_out(vectors_UE, params["random_seed"], params["perplexity"])
        except ValueError as error:
            self.notes.append(f"{plan.stage.detail}: no layout ({error})")
        best = best_concepts(lists, concepts, grouping, params["groups"])
        columns = {
            **about(plan.stage),
            "unit": grouping.units,
            "group": [grouping.groups[label] for label in grouping.labels],
            "concept": best,
            "x": pa.array(places[:, 0], from_pandas=True),  # NaN is null
            "y": pa.array(places[:, 1], from_pandas=True),
        }
        return make_batch("geometry_points", columns)

    def _note_absent(self, plan: Plan, grouping: Grouping) -> None:
        if grouping.absent:
            some = ", ".join(grouping.absent[:NAMED]) + (", ..." if len(grouping.absent) > NAMED else "")
            self.notes.append(
                f"{plan.stage.detail}: {len(grouping.absent)} concepts of the groups have no units: {some}"
            )


def units_by_concept(lists: Lists, concepts: Sequence[str]) -> dict[str, list[int]]:
    """Concept -> its units, the best first; concepts without units are left out."""
    found: dict[str, list[int]] = {}
    for concept, unit in zip(lists.concepts.tolist(), lists.units.tolist(), strict=True):
        found.setdefault(concepts[concept], []).append(unit)
    return found


def best_concepts(lists: Lists, concepts: Sequence[str], grouping: Grouping, groups: dict[str, list[str]]) -> list[str]:
    """Of every unit of a grouping the concept of its group in whose list it is first; of equal places the first concept."""
    left_out = {*grouping.ungrouped, *grouping.ambiguous}
    members = [set(groups[group]) - left_out for group in grouping.groups]
    group_of = dict(zip(grouping.units.tolist(), grouping.labels.tolist(), strict=True))
    best: dict[int, str] = {}
    for place in np.lexsort((lists.concepts, lists.ranks)):
        unit, concept = int(lists.units[place]), concepts[lists.concepts[place]]
        if unit in group_of and concept in members[group_of[unit]]:
            best.setdefault(unit, concept)
    return [best[unit] for unit in grouping.units.tolist()]


def embed_units(plan: Plan, inputs: Inputs, units: np.ndarray, device: str) -> Tensor:
    """Their directions in the space of the CLIP: E_n of one-hot vectors, or of decoder rows (MICLIP, analysis 4); [U,E].

    Raises:
        BadAlignment: the SAE and the encoder are of different models or sites.
    """
    stages = plan.stage.inputs
    encoder = load_encoder(inputs.published(stages["encoder"], ENCODER)).to(device)
    chosen = torch.from_numpy(units).to(device)
    if units_of(plan.stage).sae is None:
        return encoder.embed_units()[chosen]
    return encoder.embed_latents(load_sae(inputs.published(stages["sae"], SAE)).to(device))[chosen]


def _summary(plan: Plan, grouping: Grouping, vectors_UE: Tensor) -> pa.RecordBatch:
    params: Any = plan.stage.params
    found = measure_geometry(
        vectors_UE, grouping.labels, params["neighbours"], params["permutations"], params["random_seed"]
    )
    row = {
        **about(plan.stage),
        "groups": len(set(grouping.labels.tolist())),
        "units": found.units,
        "neighbours": found.neighbours,
        "silhouette": found.silhouette,
        "silhouette_p": found.silhouette_p,
        "purity": found.purity,
        "purity_p": found.purity_p,
        "purity_chance": found.chance,
        "concepts_ungrouped": len(grouping.ungrouped),
        "concepts_ambiguous": len(grouping.ambiguous),
        "units_shared": len(grouping.shared),
    }
    return make_batch("geometry_summary", {name: [value] for name, value in row.items()})


def open_worker(setting: Setting, inputs: Inputs) -> GeometryWorker:
    """Nothing is loaded before there is work."""
    return GeometryWorker(setting)
