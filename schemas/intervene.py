"""What an intervention does to units: frozen values that travel in specs and digests."""

from __future__ import annotations

from typing import Literal

from schemas.base import Frozen

ErrorMode = Literal["keep", "drop"]
"""What becomes of the part of an activation that an SAE does not reconstruct when its features are edited."""

MapActivation = Literal["linear", "sae"]
"""How strongly a feature enters an attention map: by the encoder before its activation function, or by the code."""


class Change(Frozen):
    """What is done to a unit's value u: scale (u -> beta u; 2 enhances, 0 removes) or add (u -> u + beta, in units of u)."""

    op: Literal["scale", "add"] = "scale"
    beta: float

    @property
    def is_identity(self) -> bool:
        """Whether it leaves every value as it is."""
        return self.beta == (1 if self.op == "scale" else 0)

    def __str__(self) -> str:
        return f"{'x' if self.op == 'scale' else '+'}{self.beta:g}"
