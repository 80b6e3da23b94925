"""The units of all members of a zoo under one numbering, and the buddies among them, read from published tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.mine_rosetta.members import Member
from jobs.mine_rosetta.plan import compared
from jobs.mine_rosetta.units import load_units, number_units, places_of
from jobs.protocol import Inputs
from jobs.sae_files import sae_ref
from miclip_core.rosetta.buddies import Buddies
from miclip_core.rosetta.graph import ZooGraph, join_buddies
from schemas.plans import StageSpec

_BUDDIES = ("site_a", "unit_a", "site_b", "unit_b", "r", "rank_ab", "rank_ba", "is_below_null")


@dataclass(frozen=True, eq=False)
class Vertices:
    """Every unit of every member: member by member, site by site, channel by channel.

    first int64 [M+1]: vertices of member m are first[m] to first[m + 1]. member, model, site, unit int32 [V]: whose it is;
    models are numbered as in `models`, sites as in `sites`, which says the member and its site. kurtosis and active
    float32 [V]. in_zoo bool [V]: whether it was compared at all, which dead and dropped rare units were not.
    """

    members: tuple[Member, ...]
    first: np.ndarray
    site: np.ndarray
    unit: np.ndarray
    kurtosis: np.ndarray
    active: np.ndarray
    in_zoo: np.ndarray

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Model refs, each once."""
        return tuple(dict.fromkeys(member.model for member in self.members))

    @cached_property
    def sites(self) -> tuple[tuple[int, int], ...]:
        """(member, place among its sites) of every numbered site."""
        return tuple((m, i) for m, member in enumerate(self.members) for i in range(len(member.sites)))

    @cached_property
    def member(self) -> np.ndarray:
        """int32 [V]."""
        return np.repeat(np.arange(len(self.members), dtype=np.int32), np.diff(self.first))

    @cached_property
    def model(self) -> np.ndarray:
        """int32 [V]."""
        return self.model_of_member[self.member]

    @cached_property
    def model_of_member(self) -> np.ndarray:
        """int32 [M]: members of one model share its number."""
        return np.array([self.models.index(member.model) for member in self.members], np.int32)

    @cached_property
    def depth(self) -> np.ndarray:
        """float32 by numbered site: its place in the model."""
        return np.array([self.members[m].sites[i].depth for m, i in self.sites], np.float32)

    def columns(self, vertices: np.ndarray) -> dict[str, Any]:
        """The columns that say which units these vertices (int [n]) are."""
        member, site = pa.array(self.member[vertices]), pa.array(self.site[vertices])
        names = whose(self.members)
        return {
            **{name: pa.array(values, pa.string()).take(member) for name, values in names.items()},
            "site": pa.array([self.members[m].sites[i].site for m, i in self.sites]).take(site),
            "unit": self.unit[vertices],
        }


def whose(members: Sequence[Member]) -> dict[str, list[str | None]]:
    """Model, SAE and kind of units of each of these members, as tables say them."""
    return {
        "model": [member.model for member in members],
        "sae": [sae_ref(member.sae) for member in members],
        "unit_kind": [member.unit_kind for member in members],
    }


def read_vertices(inputs: Inputs, stage: StageSpec, members: Sequence[Member]) -> Vertices:
    """All units of a zoo, from the tables `rosetta_units` of its inputs units.0, units.1 and so on.

    Raises:
        TableMismatch: a site that no member has, or not every unit of a site once.
    """
    found = [load_units(inputs, stage.inputs[f"units.{m}"], member) for m, member in enumerate(members)]
    first = np.cumsum([0] + [len(units) for units in found])
    before = np.cumsum([0] + [len(member.sites) for member in members[:-1]])
    places = [places_of(units.member, np.arange(len(units))) for units in found]
    left_out = [units.dead if stage.params["rare"] == "keep" else units.dead | units.rare for units in found]
    return Vertices(
        tuple(members),
        first,
        np.concatenate([site + n for (site, _), n in zip(places, before, strict=True)]).astype(np.int32),
        np.concatenate([unit for _, unit in places]),
        np.concatenate([units.kurtosis for units in found]),
        np.concatenate([units.active for units in found]),
        ~np.concatenate(left_out),
    )


def read_all_buddies(inputs: Inputs, stage: StageSpec, vertices: Vertices) -> dict[tuple[int, int], Buddies]:
    """The buddies above the null of every two members that were compared, by their places."""
    return {(a, b): read_buddies(inputs, stage, f"pair.{a}.{b}", vertices, a, b) for a, b in compared(vertices.members)}


def read_buddies(inputs: Inputs, stage: StageSpec, name: str, vertices: Vertices, a: int, b: int) -> Buddies:
    """The buddies above the null that the input `name` of a zoo has published for members a and b.

    Units are numbered inside their members. r is |r| where neighbours were ranked by that.

    Raises:
        TableMismatch: a site that neither member has.
    """
    pair = stage.inputs[name]
    batches = list(inputs.table(pair, "rosetta_buddies", _BUDDIES))
    if not batches:
        empty = np.zeros(0, np.int32)
        return Buddies(empty, empty, np.zeros(0), empty.astype(np.int16), empty.astype(np.int16))
    rows = pa.Table.from_batches(batches)
    rows = rows.filter(pc.invert(rows["is_below_null"]))
    members, r = vertices.members, rows["r"].to_numpy()
    found = Buddies(
        number_units(members[a], rows["site_a"], rows["unit_a"].to_numpy(), pair),
        number_units(members[b], rows["site_b"], rows["unit_b"].to_numpy(), pair),
        np.abs(r) if stage.params["rank_by"] == "abs_r" else r,
        rows["rank_ab"].to_numpy().astype(np.int16),
        rows["rank_ba"].to_numpy().astype(np.int16),
    )
    return _sorted(found)


def _sorted(buddies: Buddies) -> Buddies:
    order = np.lexsort((buddies.b, buddies.a))
    return Buddies(buddies.a[order], buddies.b[order], buddies.r[order], buddies.rank_ab[order], buddies.rank_ba[order])


def graph_of(vertices: Vertices, pairs: Mapping[tuple[int, int], Buddies]) -> ZooGraph:
    """The graph whose members are models: neurons of a model and latents of its SAEs stand for the same model."""
    return join_buddies(np.diff(vertices.first).tolist(), pairs, vertices.model_of_member.tolist())
