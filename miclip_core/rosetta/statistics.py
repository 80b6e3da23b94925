"""What the maps of each unit are like: skewness, kurtosis, how often and in how many images it is active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from miclip_core.rosetta.memory import SLICE
from miclip_core.rosetta.standardise import Scale
from miclip_core.zoo.reducers import Moments, State

ACTIVE_SD = 3.0
"""A unit that can be negative is active where it is more than so many standard deviations above its mean."""
MIN_IMAGES, MIN_POSITIONS = 5, 20
"""A unit active in fewer can resemble another by chance."""
_NAMES = ("cubes", "fourths", "active", "active_images")


class UnitStatistics:
    """The second pass over native maps, given the moments of the first; shards of images merge.

    A unit is active where it is above 0 if it is never negative (after a ReLU), else more than ACTIVE_SD above its mean.
    """

    def __init__(self, moments: Moments) -> None:
        """Raises: ValueError: moments of no rows, or per position."""
        if moments.mean is None or moments.min is None or moments.per_position:
            raise ValueError("unit statistics need the moments of all rows, per unit")
        self.scale = Scale.of(moments)
        self.low = moments.min
        self.n = self.images = 0
        units = len(self.low)
        self._sums: dict[str, np.ndarray] = {
            name: np.zeros(units, np.float64 if name in _NAMES[:2] else np.int64) for name in _NAMES
        }

    @torch.no_grad()
    def add(self, rows_BPU: Tensor, positions: np.ndarray, image_ids: Sequence[str]) -> None:
        """Take in one batch [B, P, U], as a reducer does."""
        step = max(1, SLICE // max(1, rows_BPU[:1].numel()))
        for rows in rows_BPU.split(step):
            for name, part in zip(_NAMES, self._parts(rows.double()), strict=True):
                self._sums[name] = self._sums[name] + part.cpu().numpy()
        self.n += rows_BPU.shape[0] * rows_BPU.shape[1]
        self.images += len(rows_BPU)

    def merge(self, other: UnitStatistics) -> None:
        """Join those of the same units, with the same moments, over other images.

        Raises:
            ValueError: they are about other means.
        """
        if not np.array_equal(self.scale.centre, other.scale.centre):
            raise ValueError(
                "unit statistics of other means cannot be joined; give all shards the moments of all images"
            )
        self.n, self.images = self.n + other.n, self.images + other.images
        for name in _NAMES:
            self._sums[name] = self._sums[name] + other._sums[name]

    @property
    def skewness(self) -> np.ndarray:
        """fp64 [U]: third central moment over the cube of the population sd; 0 for dead units."""
        return self._sums["cubes"] / self.n

    @property
    def kurtosis(self) -> np.ndarray:
        """fp64 [U]: fourth central moment over the fourth power of the population sd, less 3; 0 for dead units."""
        return np.where(self.scale.dead, 0.0, self._sums["fourths"] / self.n - 3)

    @property
    def active_positions(self) -> np.ndarray:
        """int64 [U]: positions of all images at which it is active."""
        return self._sums["active"]

    @property
    def active_images(self) -> np.ndarray:
        """int64 [U]: images in which it is active anywhere."""
        return self._sums["active_images"]

    @property
    def active_fraction(self) -> np.ndarray:
        """fp64 [U]: share of positions at which it is active."""
        return self.active_positions / self.n

    def rare(self, min_images: int = MIN_IMAGES, min_positions: int = MIN_POSITIONS) -> np.ndarray:
        """bool [U]: units active in too few images or at too few positions to tell likeness from chance."""
        return (self.active_images < min_images) | (self.active_positions < min_positions)

    def state(self) -> State:
        """Arrays from which `from_state` makes equal statistics, given the same moments."""
        return {"n": np.array(self.n), "images": np.array(self.images), **self._sums}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray], moments: Moments) -> UnitStatistics:
        """The statistics that gave this state."""
        made = cls(moments)
        made.n, made.images = int(state["n"]), int(state["images"])
        made._sums = {name: np.array(state[name]) for name in _NAMES}
        return made

    def _parts(self, x_BPU: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alive = ~self.scale.dead
        centre = torch.from_numpy(np.where(alive, self.scale.centre, 0)).to(x_BPU.device)
        sd = torch.from_numpy(np.where(alive, self.scale.sd, np.inf)).to(x_BPU.device)
        floor = np.where(self.low >= 0, 0, self.scale.centre + ACTIVE_SD * self.scale.sd)
        active_BPU = x_BPU > torch.from_numpy(floor).to(x_BPU.device)
        z_BPU = (x_BPU - centre) / sd
        squares_BPU = z_BPU.square()
        cubes_U = (squares_BPU * z_BPU).sum((0, 1))
        return cubes_U, squares_BPU.square_().sum((0, 1)), active_BPU.sum((0, 1)), active_BPU.any(1).sum(0)
