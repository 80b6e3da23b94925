"""Two members that are compared: their units, how their maps meet, and how the images of an index are cut."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.mine_rosetta.plan import member_of, rule_of, tiles_of
from jobs.mine_rosetta.taps import Range
from jobs.mine_rosetta.tiles import tiling_bytes, whole_bytes
from jobs.mine_rosetta.units import Units, load_units
from jobs.protocol import Inputs
from miclip_core.rosetta.crossing import Crossing
from miclip_core.rosetta.grids import common_grid
from schemas.errors import BadMaps, BadSpec
from schemas.plans import Plan


@dataclass(frozen=True, eq=False)
class Pair:
    """The members of a plan with their units; `same` says that a member is compared with itself."""

    plan: Plan
    a: Units
    b: Units

    @classmethod
    def of(cls, plan: Plan, inputs: Inputs) -> Pair:
        """The pair of a plan. Raises BadMaps: no unit of a member can be compared."""
        units = [load_units(inputs, plan.stage.inputs[side], member_of(plan, side)) for side in "ab"]
        pair = cls(plan, *units)
        for of in units:
            if not pair.compared(of).any():
                raise BadMaps(
                    f"{of.member.name}: none of its {len(of)} units can be compared: {int(of.dead.sum())} do not vary, the others are "
                    "active on too few images or positions; use more images, or rare: keep"
                )
        pair._check_widths()
        return pair

    def _check_widths(self) -> None:
        """Nothing, if SAEs of which the width was assumed are cut small enough. Raises BadSpec."""
        if len(self.a) <= self.a.member.width and len(self.b) <= self.b.member.width:
            return
        a, b = (of.member if of.member.sae is None else of.member.of_width(len(of)) for of in (self.a, self.b))
        effort: Any = self.plan.effort
        budget, block, neighbours = (
            effort["budget_bytes"],
            effort["images_at_once"],
            max(self.k) + self.params["margin"],
        )
        tiles = [tiles_of(self.plan, shard) for shard in range(self.plan.rounds[0].rows)]
        if (needed := tiling_bytes(tiles, a, b, block, neighbours)) > budget:
            batch = int(str(a.forward.effort["batch_size"]))
            wide = self.a if len(self.a) > self.a.member.width else self.b
            raise BadSpec(
                f"budget_gb: {wide.member.name} has {len(wide)} latents, and {wide.member.width} were assumed when tiles were cut, so "
                f"they take {needed / 2**30:.2f} GiB; expected at most {budget / 2**30:.2f}; give budget_gb: "
                f"{math.ceil(whole_bytes(a, b, batch, neighbours) / 2**30 * 100) / 100:g}, or do not read this SAE"
            )

    @property
    def params(self) -> dict[str, Any]:
        """What decides its result."""
        return self.plan.stage.params

    @property
    def same(self) -> bool:
        """Whether a member is compared with itself."""
        return self.plan.stage.inputs["a"] == self.plan.stage.inputs["b"]

    @property
    def k(self) -> tuple[int, int]:
        """Neighbours that count in either direction: as many both ways of a member with itself."""
        k_a, k_b = self.params["k"]
        return (max(k_a, k_b),) * 2 if self.same else (k_a, k_b)

    @property
    def absolute(self) -> bool:
        """Whether r counts without its sign."""
        return bool(self.params["rank_by"] == "abs_r")

    @property
    def shift(self) -> int:
        """By how many images the null is shifted."""
        rows = self.a.member.forward.rows
        return int(self.params["chance_shift"] or rows // 2) % rows

    @property
    def crossings(self) -> dict[tuple[int, int], Crossing]:
        """How the maps of each two groups meet."""
        rule = rule_of(self.params)
        a, b = self.a.member.groups, self.b.member.groups
        grids = {(i, j): (x.grid, y.grid) for i, x in enumerate(a) for j, y in enumerate(b)}
        return {place: Crossing(*two, common_grid(*two, rule)) for place, two in grids.items()}

    def compared(self, units: Units) -> np.ndarray:
        """bool [U]: units that vary and, if rare ones are dropped, are active often enough."""
        return ~units.dead & ~(units.rare & (self.params["rare"] == "drop"))


def ranges_of(start: int, stop: int, size: int, cut: int = 0) -> list[Range]:
    """Rows [start, stop) in ranges of at most `size`, of which none lies on both sides of `cut`."""
    ends = [stop] if not start < cut < stop else [cut, stop]
    found = []
    for end in ends:
        found += [(first, min(first + size, end)) for first in range(start, end, size)]
        start = end
    return found


def select(rows_BPU: Tensor, places: np.ndarray) -> Tensor:
    """The rows of some images, ascending; the same tensor where these are all."""
    return rows_BPU if len(places) == len(rows_BPU) else rows_BPU[torch.from_numpy(places).to(rows_BPU.device)]
