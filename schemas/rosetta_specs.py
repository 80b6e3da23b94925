"""What a person writes to find the units that the models of a zoo share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from schemas.base import EFFORT, RESULT
from schemas.cells import LISTED, OverZoo, as_listed, as_tuple
from schemas.concept_specs import UnitKind
from schemas.refs import Site


def _both(value: object) -> object:
    """One number of neighbours holds in both directions."""
    found = as_tuple(value)
    return found * 2 if isinstance(found, tuple) and len(found) == 1 else found


def _rows_and_columns(value: object) -> object:
    """A grid is named or two numbers; the message names both, which that of a union does not."""
    found = as_listed(value)
    if found != "pairwise_max" and not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(f"grid {value}: expected pairwise_max, or rows and columns such as [7, 7]")
    return found


def _all_none_or_models(value: object) -> object:
    """One model is a list of one, and all of them if the list is empty."""
    found = value if value in ("all", "none") else as_tuple(value)
    return "all" if found == () else found


class MineRosettaSpec(OverZoo):
    """Units that respond to the same places in the same images, for every pair of models and over all of them.

    What takes part are the neurons of each model at the sites that it has, and the latents of every SAE of it that a
    stage which is read has trained or imported; and the units of a generator, if one is among the models and drew the
    images. r is Pearson's over images and positions of the interpolated maps.
    """

    kind: Annotated[Literal["mine_rosetta"], RESULT] = "mine_rosetta"
    geometry: Annotated[Literal["model", "square"], RESULT] = "square"
    """`square` is one centre-square view for all; `model` is allowed where every model's own transform cuts nothing off."""
    units: Annotated[tuple[UnitKind, ...], LISTED, Field(min_length=1), RESULT] = ("neurons", "features")
    """Neurons of the models, features of the SAEs that are read, or both."""
    grid: Annotated[Literal["pairwise_max"] | tuple[int, int], BeforeValidator(_rows_and_columns), RESULT] = (
        "pairwise_max"
    )
    """Where maps are compared: at the finer of two grids, or all at one grid of rows and columns."""
    k: Annotated[tuple[int, int], BeforeValidator(_both), RESULT] = (5, 5)
    """Neighbours that count for a unit of the earlier and of the later model of a pair; one number for both."""
    rank_by: Annotated[Literal["r", "abs_r"], RESULT] = "r"
    """`abs_r` counts what falls where another rises as alike."""
    min_r: Annotated[float | None, Field(ge=0, le=1), RESULT] = None
    """Buddies below it are left out; none if left out."""
    margin: Annotated[int, Field(ge=0, le=256), RESULT] = 8
    """Further neighbours of the fast pass that are computed again in float64."""
    precision: Annotated[Literal["fp32", "fp16", "bf16"], RESULT] = "fp32"
    """What standardised maps are rounded to for the products of the fast pass; fp16 suits a GPU."""
    chance: Annotated[Literal["shifted", "shifted_rotated"], RESULT] = "shifted"
    """What chance gives: images of the second model shifted against those of the first, and its maps rotated by quarter turns."""
    chance_shift: Annotated[int | None, Field(ge=1), RESULT] = None
    """By how many images; half of them if left out."""
    rare: Annotated[Literal["drop", "keep"], RESULT] = "drop"
    """Units that are active on too few images or positions, which can agree by chance."""
    min_active_images: Annotated[int, Field(ge=1), RESULT] = 5
    min_active_positions: Annotated[int, Field(ge=1), RESULT] = 20
    anchors: Annotated[Literal["all", "none"] | tuple[str, ...], BeforeValidator(_all_none_or_models), RESULT] = "all"
    """Models around which tuples and clusters are made, each of which is for that also compared with itself."""
    tuples: Annotated[Literal["best", "full"], RESULT] = "best"
    """One tuple per unit of an anchor, with the best buddy in each other model; or all combinations."""
    min_clique: Annotated[int, Field(ge=2), RESULT] = 3
    most: Annotated[int, Field(ge=1), RESULT] = 1_000_000
    """Tuples of an anchor, and cliques, that are listed at most."""
    entries_from: Annotated[Literal["cliques", "clusters"], RESULT] = "cliques"
    """What the dictionary shows: units that are buddies of each other in several models, or clusters of each anchor."""
    entries: Annotated[int, Field(ge=0), RESULT] = 200
    """Entries of the dictionary; 0 makes none."""
    exemplars: Annotated[int, Field(ge=1, le=100), RESULT] = 5
    """Images of an entry, each with the maps of all its units."""
    maps: Annotated[Literal["auto", "cache", "recompute"], EFFORT] = "auto"
    """Whether a node keeps the maps of a model while pairs are computed, or computes them again; `auto` weighs both."""
    cache_gb: Annotated[float, Field(ge=0), EFFORT] = 8.0
    """Scratch space of one node for such maps."""
    budget_gb: Annotated[float, Field(gt=0), EFFORT] = 2.0
    """What a worker may hold beside its libraries and models."""
    shard_rows: Annotated[int, Field(ge=1), EFFORT] = 2048

    @field_validator("grid")
    @classmethod
    def _a_grid_has_positions(cls, value: str | tuple[int, int]) -> str | tuple[int, int]:
        if not isinstance(value, str) and min(value) < 2:
            raise ValueError(f"grid {value[0]}x{value[1]}: nothing can be interpolated to it; expected at least 2x2")
        return value

    @field_validator("k")
    @classmethod
    def _neighbours_are_counted_from_one(cls, value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < 1 or max(value) > 1000:
            raise ValueError(f"k {value[0]} and {value[1]}: expected 1 to 1000 neighbours on either side")
        return value

    @field_validator("sites")
    @classmethod
    def _sites_are_maps(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            site = Site.parse(text)
            if site.reduce is not None or site.tokens in ("cls", "reg", "all"):
                raise ValueError(f"{text} is no map; write {site.path}@patch or {site.path}@map")
            if site.is_module:
                raise ValueError(f"{text}: a plain module is of one model, and sites are for all; name a site")
        return value

    @model_validator(mode="after")
    def _clusters_have_anchors(self) -> MineRosettaSpec:
        if self.anchors == "none" and self.entries and self.entries_from == "clusters":
            raise ValueError(
                "entries_from: clusters takes the clusters of anchors, and anchors: none leaves none; take entries_from: cliques, "
                "or name anchors"
            )
        return self

    def needs_images(self, kinds_read: Collection[str]) -> bool:
        """The images that all of them see."""
        return True
