"""The zoos of a report: who takes part in each under a short name, and what is known of every two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.report.data import ReportData
from cluster.report.sections.saes import load_groups
from schemas.plans import StageSpec

GENERATOR = "generator"
TOLD = "Models that share training targets agree more than independent ones would."


class Member(NamedTuple):
    """What takes part in a zoo: the neurons of a model, the latents of an SAE of it, or the units of a generator."""

    model: str
    sae: str | None

    @classmethod
    def of(cls, row: Mapping[str, Any], side: str = "") -> Member:
        """Of a row with model and sae, or with model_a and sae_a if the side is `_a`."""
        return cls(row[f"model{side}"], row[f"sae{side}"])


class Zoo(NamedTuple):
    """Members that were compared with each other.

    stage: digest of the stage that made the graph; None where it is not published yet. pairs: rows of rosetta_pairs.
    """

    title: str
    stage: str | None
    members: tuple[Member, ...]
    pairs: tuple[dict[str, Any], ...]

    @property
    def ks(self) -> tuple[int, ...]:
        """Numbers of neighbours that were counted with, the largest first."""
        return tuple(sorted({row["k"] for row in self.pairs}, reverse=True))

    def between(self, k: int) -> dict[tuple[int, int], dict[str, Any]]:
        """(place of a, place of b) -> the row of the pair, for pairs of two members."""
        places = {member: i for i, member in enumerate(self.members)}
        found = {
            (places[Member.of(row, "_a")], places[Member.of(row, "_b")]): row for row in self.pairs if row["k"] == k
        }
        return {(i, j): row for (i, j), row in found.items() if i != j}


def load_zoos(data: ReportData) -> list[Zoo]:
    """Every zoo whose graph is published, then the pairs that belong to none yet."""
    rows = data.table("rosetta_pairs").to_pylist()
    zoos, taken = [], set()
    for zoo in load_graphs(data):
        inside = set(data.stages[str(zoo.stage)].stage.inputs.values())
        taken |= inside
        zoos.append(zoo._replace(pairs=tuple(row for row in rows if row["stage"] in inside)))
    return zoos + _unfinished([row for row in rows if row["stage"] not in taken])


def load_graphs(data: ReportData) -> list[Zoo]:
    """Every zoo whose graph is published, without its pairs."""
    stages = [found.stage for found in data.stages.values()]
    stages = sorted(
        (s for s in stages if (s.kind, s.output) == ("mine_rosetta", "zoo")), key=lambda s: (s.subject, s.digest)
    )
    titles = _titles(data, stages)
    return [Zoo(titles[stage.digest], stage.digest, _members(stage.params), ()) for stage in stages]


def _titles(data: ReportData, stages: Sequence[StageSpec]) -> dict[str, str]:
    """Each by its name in the spec; of several of that name with the pipeline before it, else with the start of its digest."""
    names = {stage.digest: stage.subject.removeprefix("zoo-") for stage in stages}
    runs = {s.digest: facts.state.pipeline for facts in data.runs for s in facts.state.stages}
    longer = {digest: f"{runs[digest]} {name}" if digest in runs else name for digest, name in names.items()}
    for digest, name in names.items():
        if list(names.values()).count(name) == 1:
            longer[digest] = name
    titles = list(longer.values())
    return {digest: title if titles.count(title) == 1 else f"{title} {digest[:6]}" for digest, title in longer.items()}


def _members(params: Mapping[str, Any]) -> tuple[Member, ...]:
    """As the stage of a graph says them, in its order."""
    return tuple(Member(m["model"], f"sae:{m['sae']}" if m["sae"] else None) for m in params.get("members", ()))


def _unfinished(rows: Sequence[dict[str, Any]]) -> list[Zoo]:
    """Pairs without a graph; two results for the same pair belong to two zoos."""
    groups: list[dict[tuple[Any, ...], dict[str, Any]]] = []
    for row in rows:
        key = (Member.of(row, "_a"), Member.of(row, "_b"), row["k"])
        free = next((group for group in groups if key not in group), None)
        if free is None:
            groups.append(free := {})
        free[key] = row
    members = [dict.fromkeys(member for a, b, _ in group for member in (a, b)) for group in groups]
    return [Zoo("pairs without a graph yet", None, tuple(of), tuple(g.values())) for of, g in zip(members, groups)]


class MemberNames:
    """Short names that tell members apart: a model goes by its name, an SAE by what tells it from others, a generator as one."""

    def __init__(self, data: ReportData) -> None:
        rows = data.table("models", ["model", "family"]).to_pylist()
        self._generators = {row["model"] for row in rows if row["family"] == GENERATOR}
        self._saes = {sae.ref: sae.name for group in load_groups(data) for sae in group.saes}

    def of(self, members: Sequence[Member]) -> dict[Member, str]:
        """One name for each; they are told apart among these."""
        models = short_models([member.model for member in members])
        names = {member: self._name(member, models[member.model]) for member in members}
        taken = list(names.values())
        return {m: name if taken.count(name) == 1 else f"{name} {(m.sae or m.model)[-6:]}" for m, name in names.items()}

    def _name(self, member: Member, model: str) -> str:
        if member.sae:
            return f"{model} SAE {self._saes.get(member.sae, member.sae.removeprefix('sae:')[:6])}"
        return f"{model} (draws)" if member.model in self._generators else model

    def kind(self, member: Member) -> str:
        """neurons, features of an SAE, or units of a generator."""
        return "features" if member.sae else "units of a generator" if member.model in self._generators else "neurons"


def short_models(models: Iterable[str]) -> dict[str, str]:
    """Model ref -> the shortest of its names that no other model has: hf:facebook/dinov2-base is dinov2-base."""
    forms = {model: _forms(model) for model in models}
    return {
        model: next((name for i, name in enumerate(names) if all(other[i] != name for m, other in forms.items() if m != model)), model)
        for model, names in forms.items()
    }  # fmt: skip


def _forms(model: str) -> tuple[str, str, str]:
    """Without where it is from, without its source, whole; what is random says so in each."""
    source, _, rest = model.partition(":")
    name = rest.partition("@")[0] or model
    base, random, seed = name.partition("/random(")
    pieces = base.split("/")
    return (pieces[-1] if source == "hf" else pieces[0]) + (f" random({seed}" if random else ""), name, model


def member_index(table: pa.Table, members: Sequence[Member], side: str = "") -> np.ndarray:
    """Place among the members of every row of a table with model and sae; -1 of a stranger."""
    joined = pc.binary_join_element_wise(
        table[f"model{side}"], pc.fill_null(table[f"sae{side}"], ""), "\n"
    ).combine_chunks()
    names = pc.dictionary_encode(joined)
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    places = {f"{m.model}\n{m.sae or ''}": i for i, m in enumerate(members)}
    of = np.array([places.get(name, -1) for name in names.dictionary.to_pylist()], dtype=np.int64)
    return of[names.indices.to_numpy(zero_copy_only=False)] if len(of) else np.zeros(0, np.int64)
