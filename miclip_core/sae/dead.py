"""Which latents are dead: how many tokens went by since each fired, where firing means a value above zero."""

from __future__ import annotations

import torch
from torch import Tensor


class DeadCount:
    """Tokens since each latent last fired, int64 [U]."""

    def __init__(self, latents: int, dead_tokens: int, device: str | torch.device) -> None:
        self.since = torch.zeros(latents, dtype=torch.int64, device=device)
        self.dead_tokens = dead_tokens

    def dead(self) -> Tensor:
        """The latents that have not fired for `dead_tokens` tokens, ascending int64."""
        return (self.since >= self.dead_tokens).nonzero().flatten()

    def update(self, fired_U: Tensor, tokens: int) -> None:
        """One batch of `tokens` went by, in which the latents `fired` (bool [U]) had a value above zero."""
        self.since += tokens
        self.since[fired_U] = 0

    @property
    def all_silent(self) -> bool:
        """Whether not one latent fired on the last batch."""
        return bool(self.since.min() > 0)
