"""Maps shifted and scaled before any product: z = (x - centre) / sd, rounded to the precision of the products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from miclip_core.zoo.reducers import Moments

Precision: TypeAlias = Literal["fp32", "fp16", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCES: dict[Precision, float] = {"fp32": 1e-5, "fp16": 4e-4, "bf16": 4e-3}
"""How far a correlation of rounded maps can be from the exact one: twice what units show that are active in the same 20 places.

Rarer ones, which are usually left out, come up to it. Nothing is further off than two and a half times as far, both
factors being half an ulp off."""

CLAMP = 6e4
"""Just below the largest float16. n samples standardised by their own sd are within sqrt(n), so only a scale that was
taken from other images can come here."""


@dataclass(frozen=True, eq=False)
class Scale:
    """Centre and standard deviation of each unit over its native maps: fp64 [U] both.

    Correlations do not depend on either, but sums of shifted values cancel nothing, so products may run in fp16.
    """

    centre: np.ndarray
    sd: np.ndarray

    @classmethod
    def of(cls, moments: Moments) -> Scale:
        """Mean and population sd of what was reduced."""
        assert moments.mean is not None, "no rows yet"
        return cls(moments.mean, np.sqrt(moments.variance))

    @property
    def dead(self) -> np.ndarray:
        """bool [U]: units that are constant up to rounding, or not finite; no map of theirs resembles any other."""
        return dead(self.centre, self.sd)

    def take(self, units: np.ndarray | slice) -> Scale:
        """The scale of some units, in the order asked for."""
        return Scale(self.centre[units], self.sd[units])


def dead(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """bool [U]: sd at most a millionth of the root mean square (1e-18 where that is smaller), or not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        rms = np.hypot(mean, sd)
        return ~np.isfinite(rms) | (sd <= 1e-6 * np.maximum(1e-12, rms))


def standardised(rows_BPU: Tensor, scale: Scale, precision: Precision = "fp32") -> tuple[Tensor, Tensor]:
    """z [B, P, U] in the type of `precision`, and how many values were clamped to what float16 holds (int64 scalar).

    Computed in fp32 and rounded once, for the rounding of raw values does not average out where a mean is large. Dead
    units give zeros.
    """
    alive = ~scale.dead
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(alive, 1 / scale.sd, 0)
    z_BPU = rows_BPU.float() - _like(rows_BPU, np.where(alive, scale.centre, 0))
    z_BPU *= _like(rows_BPU, factor)
    if not alive.all():
        z_BPU[..., torch.from_numpy(np.flatnonzero(~alive)).to(z_BPU.device)] = 0  # 0 * NaN is none
    if precision != "fp16":
        return z_BPU.to(DTYPES[precision]), torch.zeros((), dtype=torch.int64, device=z_BPU.device)
    half_BPU = z_BPU.clamp_(-CLAMP, CLAMP).half()
    return half_BPU, (half_BPU.abs() >= CLAMP).sum()


def _like(rows: Tensor, numbers_U: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers_U).to(rows.device, torch.float32)
