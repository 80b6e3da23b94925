"""Which units of a generator go with which of other models, and their statistics, from the tables of mined pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jobs.invert.partners import Partner
from jobs.protocol import Inputs
from jobs.sae_files import sae_ref
from miclip_core.rosetta.grids import Grid
from miclip_core.rosetta.standardise import Scale
from schemas.errors import BadUnits, NothingToGuide
from schemas.models import ModelFacts
from schemas.refs import site_path

Place = tuple[str, int]
"""A site and a channel of it, or a latent."""


class Pair(NamedTuple):
    """A unit of the generator and its best buddy in one of the members that guide."""

    own: Place
    partner: int
    """Place of the member among those that guide."""
    other: Place
    r: float


class OnGrid(NamedTuple):
    """Statistics are of a unit as resized for one grid: of the generator (None), or of a member that guides."""

    partner: int | None
    place: Place
    grid: Grid


Moments = dict[OnGrid, tuple[float, float]]
"""Mean and standard deviation."""


def read_pairs(inputs: Inputs, partners: Sequence[Partner], k: int, most: int | None) -> list[Pair]:
    """The best buddies above the null among the k nearest of each other, highest r (or |r|) first, at most so many.

    Raises:
        NothingToGuide: there are none.
    """
    found = [pair for i, partner in enumerate(partners) for pair in _buddies(inputs, i, partner, k)]
    if not found:
        names = ", ".join(partner.name for partner in partners)
        raise NothingToGuide(
            f"no units of the generator and of {names} are best buddies above the null with k {k}; give a larger k, other "
            "members, or mine with more images"
        )
    found.sort(key=lambda pair: (-abs(pair.r), *pair))
    return found[:most]


def _buddies(inputs: Inputs, number: int, partner: Partner, k: int) -> Iterable[Pair]:
    own, other = partner.side, partner.other
    columns = [
        f"site_{own}",
        f"unit_{own}",
        f"site_{other}",
        f"unit_{other}",
        "r",
        "rank_ab",
        "rank_ba",
        "is_below_null",
    ]
    for batch in inputs.table(partner.pair, "rosetta_buddies", columns):
        for site, unit, site_of, unit_of, r, rank_ab, rank_ba, below in zip(*_values(batch, columns), strict=True):
            if not below and max(rank_ab, rank_ba) < k:
                yield Pair((site, unit), number, (site_of, unit_of), r)


def widths_of(facts: ModelFacts) -> dict[str, int]:
    """Site without its positions -> how many units a model has there."""
    return {site.path: site.width for site in facts.sites}


def check_units(name: str, widths: Mapping[str, int], places: Iterable[Place]) -> None:
    """Refuse units that a member does not have; widths: site without its positions -> how many there are. Raises BadUnits."""
    for site, unit in places:
        width = widths.get(site_path(site), 0)
        if unit >= width:
            raise BadUnits(
                f"unit {unit} of {site} is among the mined pairs, but {name} has {width or 'no'} units there; "
                "mine with it again"
            )


def read_moments(inputs: Inputs, partners: Sequence[Partner], wanted: Iterable[OnGrid]) -> Moments:
    """Statistics of units as they were compared in the mined pairs, from `rosetta_moments`.

    Raises:
        NothingToGuide: those of one are missing.
    """
    left, found = set(wanted), Moments()
    columns = ["model", "sae", "site", "unit", "target_h", "target_w", "mean", "sd"]
    for i, partner in enumerate(partners):
        of_other = (partner.forward.model, sae_ref(partner.sae))
        for batch in inputs.table(partner.pair, "rosetta_moments", columns):
            for model, sae, site, unit, h, w, mean, sd in zip(*_values(batch, columns), strict=True):
                owner = i if (model, sae) == of_other else None
                key = OnGrid(owner, (site, unit), (h, w))
                if key in left:
                    found[key] = mean, sd
                    left.discard(key)
    if left:
        partner_of, (site, unit), (h, w) = min(left, key=repr)
        name = "the generator" if partner_of is None else partners[partner_of].name
        raise NothingToGuide(
            f"statistics of unit {unit} of {site} of {name} on {h}x{w} are missing from rosetta_moments; run mine_rosetta again"
        )
    return found


def read_native_moments(inputs: Inputs, stage: str, places: Sequence[Place], grids: Mapping[str, Grid]) -> Moments:
    """Statistics of the generator's units on their own grids, from the table `rosetta_units` of a stage.

    Raises:
        NothingToGuide: those of one are missing.
    """
    left, found = set(places), Moments()
    columns = ["site", "unit", "mean", "sd"]
    for batch in inputs.table(stage, "rosetta_units", columns):
        for site, unit, mean, sd in zip(*_values(batch, columns), strict=True):
            if (site, unit) in left:
                found[OnGrid(None, (site, unit), grids[site])] = mean, sd
                left.discard((site, unit))
    if left:
        site, unit = min(left)
        raise NothingToGuide(
            f"statistics of unit {unit} of {site} are missing from rosetta_units; mine_rosetta compared other sites of the "
            "generator: choose units among those, or mine with this site"
        )
    return found


def scale_of(moments: Moments, keys: Iterable[OnGrid]) -> Scale:
    """Mean and standard deviation of some units, in their order."""
    centre, sd = zip(*(moments[key] for key in keys), strict=True)
    return Scale(np.array(centre, np.float64), np.array(sd, np.float64))


def _values(batch: pa.RecordBatch, columns: Sequence[str]) -> list[list]:
    return [batch.column(name).to_pylist() for name in columns]
