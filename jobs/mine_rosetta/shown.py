"""The units that the entries of a dictionary show, member by member, and their standardised maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from jobs.mine_rosetta.maps import Maps
from jobs.mine_rosetta.members import Member
from jobs.mine_rosetta.units import Units, load_units, number_units
from jobs.protocol import Inputs
from jobs.sae_files import sae_ref
from miclip_core.rosetta.standardise import Scale, standardised
from schemas.plans import StageSpec


@dataclass(frozen=True, eq=False)
class Shown:
    """The units of one member that are in an entry, by entry and unit; a unit is there once for each of its entries.

    entry int64 [Q]; unit int64 [Q]: numbers in the member.
    """

    units: Units
    entry: np.ndarray
    unit: np.ndarray

    def __len__(self) -> int:
        return len(self.entry)

    @property
    def member(self) -> Member:
        """Whose units they are."""
        return self.units.member

    def maps(self, found: Maps) -> Iterator[tuple[np.ndarray, Tensor]]:
        """For every grid of some of these units, which of them (int64 [q]) and z [B, P, q]: sd from the mean of each unit."""
        for number, rows_BPU in enumerate(found.groups):
            span = self.units.span(number)
            own = np.flatnonzero((self.unit >= span.start) & (self.unit < span.stop))
            if len(own):
                scale = Scale(self.units.mean, self.units.sd).take(self.unit[own])
                yield own, standardised(rows_BPU[:, :, self.unit[own] - span.start], scale)[0]

    def columns(self, places: np.ndarray) -> dict[str, Any]:
        """The columns that say which units these (int [n]) are, and the grids of their maps."""
        sites = {site.site: site.grid for site in self.member.sites}
        columns = self.units.columns(self.unit[places])
        grids = np.array([sites[site] for site in columns["site"].to_pylist()], np.int32).reshape(-1, 2)
        return {**columns, "unit_kind": self.member.unit_kind, "grid_h": grids[:, 0], "grid_w": grids[:, 1]}


def read_shown(inputs: Inputs, stage: StageSpec, m: int, member: Member) -> Shown:
    """The units of member m that the zoo of a dictionary has put into entries; there may be none."""
    columns = ("entry", "model", "sae", "site", "unit")
    batches = inputs.table(stage.inputs["zoo"], "rosetta_entries", columns)
    whose = member.model, sae_ref(member.sae)
    own = [row for batch in batches for row in batch.to_pylist() if (row["model"], row["sae"]) == whose]
    sites = pa.array([row["site"] for row in own], pa.string())
    unit = number_units(member, sites, np.array([row["unit"] for row in own], np.int64), stage.inputs["zoo"])
    entry = np.array([row["entry"] for row in own], np.int64)
    order = np.lexsort((unit, entry))
    return Shown(load_units(inputs, stage.inputs[f"units.{m}"], member), entry[order], unit[order])
