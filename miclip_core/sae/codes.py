"""Sparse codes: which latents fired on which token and how strongly, in rows of compressed sparse form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Codes:
    """The activations of N tokens: row n is `latents[offsets[n]:offsets[n+1]]` with `values` beside it.

    offsets int64 [N+1]; latents int32 [nnz], ascending inside a row; values float [nnz], never 0; width: latents there are.
    """

    offsets: Tensor
    latents: Tensor
    values: Tensor
    width: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_topk(cls, idx_NK: Tensor, val_NK: Tensor, width: int) -> Codes:
        """From K latents per token [N,K] in any order and their values; zeros are left out."""
        idx_NK, order = idx_NK.sort(dim=1)
        val_NK = val_NK.gather(1, order)
        fired = val_NK != 0
        return cls(_offsets(fired.sum(1)), idx_NK[fired].int(), val_NK[fired], width)

    @classmethod
    def from_dense(cls, f_NU: Tensor) -> Codes:
        """From all activations [N,U], most of them 0."""
        fired = f_NU != 0
        return cls(_offsets(fired.sum(1)), fired.nonzero()[:, 1].int(), f_NU[fired], f_NU.shape[1])

    @classmethod
    def concat(cls, parts: Sequence[Codes]) -> Codes:
        """The tokens of all parts (at least one), one after another."""
        counts = torch.cat([part.counts() for part in parts])
        latents, values = torch.cat([part.latents for part in parts]), torch.cat([part.values for part in parts])
        return cls(_offsets(counts), latents, values, parts[0].width)

    def take(self, tokens_M: Tensor) -> Codes:
        """The codes of chosen tokens, int64 [M], in that order."""
        counts = self.counts()[tokens_M]
        offsets = _offsets(counts)
        # where a token's values begin here, less where they begin there
        shift_M = self.offsets[tokens_M] - offsets[:-1]
        chosen = torch.arange(int(offsets[-1]), device=counts.device) + torch.repeat_interleave(shift_M, counts)
        return Codes(offsets, self.latents[chosen], self.values[chosen], self.width)

    def counts(self) -> Tensor:
        """Latents per token, int64 [N]."""
        return self.offsets.diff()

    def rows(self) -> Tensor:
        """The token of every value, int64 [nnz]."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.offsets.device), self.counts())

    def dense(self) -> Tensor:
        """All activations [N,U]."""
        f_NU = self.values.new_zeros(len(self), self.width)
        f_NU[self.rows(), self.latents.long()] = self.values
        return f_NU

    def at(self, latents_NK: Tensor) -> Tensor:
        """The values of chosen latents on each token, [N,K]: 0 where one did not fire or its number is -1."""
        if not len(self.values):
            return self.values.new_zeros(latents_NK.shape)
        wanted = latents_NK + torch.arange(len(self), device=latents_NK.device)[:, None] * self.width
        keys = self.rows() * self.width + self.latents  # ascending: rows are, and the latents of a row
        place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
        return self.values[place] * ((keys[place] == wanted) & (latents_NK >= 0))

    def fired(self) -> Tensor:
        """How many tokens each latent fired on (value > 0), int64 [U]."""
        return torch.bincount(self.latents[self.values > 0], minlength=self.width)

    def to(self, device: str | torch.device) -> Codes:
        """The same codes on another device."""
        return Codes(self.offsets.to(device), self.latents.to(device), self.values.to(device), self.width)


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))
