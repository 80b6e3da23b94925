"""How far the activations of each unit range over the images, which tells dead units from live ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.errors import NonFiniteActivation


@dataclass(eq=False)
class Spread:
    """The smallest and the largest activation of every unit over the images seen: float32 [U] each, None before any."""

    low_U: Tensor | None = None
    high_U: Tensor | None = None

    def add(self, t_NU: Tensor) -> None:
        """More images, by their activations [N,U]. Raises: NonFiniteActivation."""
        low_U, high_U = t_NU.amin(0), t_NU.amax(0)  # NaN wins either, so finite ends mean finite activations
        bad = ~(low_U.isfinite() & high_U.isfinite())
        if bool(bad.any()):
            units = bad.nonzero().flatten()
            rows = (~t_NU[:, units].isfinite()).any(1).nonzero().flatten()
            raise NonFiniteActivation(
                f"{len(units)} units hold NaN or infinite activations, the first are units {units[:5].tolist()} "
                f"at rows {rows[:5].tolist()}; leave these images or this site out"
            )
        self._join(low_U.float(), high_U.float())

    def merge(self, other: Spread) -> None:
        """Join what was seen of the same units on other images."""
        if other.low_U is not None and other.high_U is not None:
            self._join(other.low_U, other.high_U)

    @property
    def constant(self) -> Tensor:
        """Units that are equally active on all images, so that these have no order: bool [U]."""
        low_U, high_U = self._ends()
        return low_U == high_U

    @property
    def silent(self) -> Tensor:
        """Units that are 0 on all images: bool [U]."""
        low_U, high_U = self._ends()
        return (low_U == 0) & (high_U == 0)

    def _ends(self) -> tuple[Tensor, Tensor]:
        assert self.low_U is not None and self.high_U is not None, "no images yet"
        return self.low_U, self.high_U

    def _join(self, low_U: Tensor, high_U: Tensor) -> None:
        self.low_U = low_U if self.low_U is None else torch.minimum(self.low_U, low_U)
        self.high_U = high_U if self.high_U is None else torch.maximum(self.high_U, high_U)
