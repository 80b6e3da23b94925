"""The units of a member as the table `rosetta_units` has them: written once, read by whoever compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.mine_rosetta.members import Member
from jobs.protocol import Inputs
from jobs.rows import make_batch
from jobs.sae_files import sae_ref
from miclip_core.rosetta.standardise import Scale
from miclip_core.rosetta.statistics import UnitStatistics
from miclip_core.zoo.reducers import Moments
from schemas.errors import TableMismatch
from schemas.plans import Plan

_READ = ("site", "unit", "mean", "sd", "kurtosis", "active", "is_dead", "is_rare")


@dataclass(frozen=True, eq=False)
class Units:
    """All units of a member, in its order. mean, sd: float64 [U]. dead, rare: bool [U]. widths: units of each group.

    kurtosis (NaN for the dead) and active (share of positions): float32 [U].
    """

    member: Member
    widths: tuple[int, ...]
    mean: np.ndarray
    sd: np.ndarray
    kurtosis: np.ndarray
    active: np.ndarray
    dead: np.ndarray
    rare: np.ndarray

    def __len__(self) -> int:
        return len(self.mean)

    @cached_property
    def firsts(self) -> tuple[int, ...]:
        """The first unit of each group."""
        return tuple(np.cumsum((0, *self.widths[:-1])).tolist())

    def span(self, group: int) -> slice:
        """The units of a group."""
        return slice(self.firsts[group], self.firsts[group] + self.widths[group])

    def scale(self, group: int) -> Scale:
        """Mean and sd of the units of a group."""
        return Scale(self.mean, self.sd).take(self.span(group))

    def columns(self, units: np.ndarray, end: str = "") -> dict[str, Any]:
        """model, sae, site and unit of some units, as columns of a table whose names end so, such as `_a`."""
        return name_units(self.member, units, end)


def name_units(member: Member, units: np.ndarray, end: str = "") -> dict[str, Any]:
    """The same for units of a member by their number in it."""
    site_of, unit = places_of(member, units)
    names = pa.array([site.site for site in member.sites], pa.string())
    columns = {"model": member.model, "sae": sae_ref(member.sae), "site": names.take(pa.array(site_of)), "unit": unit}
    return {f"{name}{end}": column for name, column in columns.items()}


def places_of(member: Member, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each unit the place of its site in the member, and its int32 number inside."""
    starts = np.cumsum([0, *(site.width for site in member.sites[:-1])])
    of = np.searchsorted(starts, units, side="right") - 1
    return of, (units - starts[of]).astype(np.int32)


def number_units(member: Member, sites: pa.Array | pa.ChunkedArray, units: np.ndarray, stage: str) -> np.ndarray:
    """int32: numbers in a member of units (int [n]) of its sites, as a stage has published them.

    Raises:
        TableMismatch: a site that the member does not have.
    """
    places = pc.index_in(sites, pa.array([site.site for site in member.sites]))
    if places.null_count:
        strange = sites.filter(pc.is_null(places))[0].as_py()
        raise TableMismatch(f"stage {stage} has units of {strange}, which is no site of {member.name}")
    starts = np.cumsum([0, *(site.width for site in member.sites[:-1])])
    return (starts[np.asarray(places, np.int64)] + units).astype(np.int32)


def load_units(inputs: Inputs, stage: str, member: Member) -> Units:
    """What a stage of units published of its member.

    Raises:
        TableMismatch: a site that the member does not have, or not each of its units once.
    """
    found = pa.Table.from_batches(list(inputs.table(stage, "rosetta_units", _READ)))
    number = number_units(member, found["site"], found["unit"].to_numpy(), stage)
    order = np.argsort(number)
    widths = tuple(group.width for group in member.groups) if member.sae is None else (len(number),)
    if not np.array_equal(number[order], np.arange(sum(widths))):
        raise TableMismatch(f"rosetta_units of stage {stage} has not each of the units of {member.name} once")
    mean, sd, kurtosis, active, dead, rare = (found[name].to_numpy()[order] for name in _READ[2:])
    return Units(member, widths, mean, sd, kurtosis.astype(np.float32), active, dead, rare)


def units_batch(
    plan: Plan, member: Member, moments: Sequence[Moments], found: Sequence[UnitStatistics]
) -> pa.RecordBatch:
    """The table of all units of a member, from what was summed of each of its groups."""
    firsts = np.cumsum([0, *(len(of.low) for of in found)])
    batches = [
        _group_batch(plan, member, np.arange(first, first + len(statistics.low)), of, statistics)
        for first, of, statistics in zip(firsts.tolist(), moments, found)
    ]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _group_batch(
    plan: Plan, member: Member, units: np.ndarray, moments: Moments, found: UnitStatistics
) -> pa.RecordBatch:
    params: dict[str, Any] = plan.stage.params
    depth = np.array([site.depth for site in member.sites], np.float32)[places_of(member, units)[0]]
    grid = member.sites[int(places_of(member, units[:1])[0][0])].grid
    dead = found.scale.dead
    columns = {
        "stage": plan.digest,
        **name_units(member, units),
        "unit_kind": member.unit_kind,
        "depth": depth,
        "grid_h": grid[0],
        "grid_w": grid[1],
        "images": found.images,
        "n": moments.count,
        "mean": found.scale.centre,
        "sd": found.scale.sd,
        "skewness": pa.array(found.skewness.astype(np.float32), mask=dead),
        "kurtosis": pa.array(found.kurtosis.astype(np.float32), mask=dead),
        "active": found.active_fraction.astype(np.float32),
        "images_active": found.active_images,
        "is_dead": dead,
        "is_rare": found.rare(params["min_active_images"], params["min_active_positions"]),
    }
    return make_batch("rosetta_units", columns)
