"""The units of a member as the table `rosetta_units` has them: written once, read by whoever compares them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.mine_rosetta.members import Member
from jobs.protocol import Inputs
from jobs.rows import make_batch
from miclip_core.rosetta.standardise import Scale
from miclip_core.rosetta.statistics import UnitStatistics
from miclip_core.zoo.reducers import Moments
from schemas.plans import Plan

_READ = ("site", "unit", "mean", "sd", "is_dead", "is_rare")


@dataclass(frozen=True, eq=False)
class Units:
    """All units of a member, in its order. mean, sd: float64 [U]. dead, rare: bool [U]. widths: units of each group."""

    member: Member
    widths: tuple[int, ...]
    mean: np.ndarray
    sd: np.ndarray
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
    site_of, unit = _places(member, units)
    names = pa.array([site.site for site in member.sites], pa.string())
    columns = {"model": member.model, "sae": sae_ref(member), "site": names.take(pa.array(site_of)), "unit": unit}
    return {f"{name}{end}": column for name, column in columns.items()}


def _places(member: Member, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each unit the place of its site in the member, and its int32 number inside."""
    starts = np.cumsum([0, *(site.width for site in member.sites[:-1])])
    of = np.searchsorted(starts, units, side="right") - 1
    return of, (units - starts[of]).astype(np.int32)


def sae_ref(member: Member) -> str | None:
    """`sae:STAGE`, or None for neurons."""
    return None if member.sae is None else f"sae:{member.sae}"


def load_units(inputs: Inputs, stage: str, member: Member) -> Units:
    """What a stage of units published of its member."""
    found = pa.Table.from_batches(list(inputs.table(stage, "rosetta_units", _READ)))
    columns = {name: found[name].to_numpy() for name in _READ[1:]}
    sites, site_of = [site.site for site in member.sites], np.array(found["site"].to_pylist())
    counts = [int((site_of == site).sum()) for site in sites]
    starts = dict(zip(sites, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))
    order = np.argsort([starts[site] for site in site_of.tolist()] + columns["unit"])
    width = dict(zip(sites, counts, strict=True))
    widths = tuple(sum(width[site.site] for site in group.sites) for group in member.groups)
    mean, sd, dead, rare = (columns[name][order] for name in ("mean", "sd", "is_dead", "is_rare"))
    return Units(member, widths, mean, sd, dead, rare)


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
    depth = np.array([site.depth for site in member.sites], np.float32)[_places(member, units)[0]]
    grid = member.sites[int(_places(member, units[:1])[0][0])].grid
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
