"""What the weights alone say of each feature: norms, agreement of encoder and decoder, nearest decoder directions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256  # features multiplied together, counted from 0: the same shapes give the same bits for any range
SPARE = 5  # candidates beyond those asked for, because float32 decides which are looked at in float64


class Weights(NamedTuple):
    """Of features [start, stop): cosine of encoder and decoder rows, decoder norms, neighbours' ids and cosines."""

    encoder_cosine: Tensor
    norm: Tensor
    neighbours: Tensor
    neighbour_cosines: Tensor


def describe_weights(W_enc_UD: Tensor, W_dec_UD: Tensor, start: int, stop: int, neighbours: int = 3) -> Weights:
    """float64 [stop - start] each; neighbours [stop - start, min(neighbours, U - 1)], nearest first, by cosine.

    Of equally near ones the lower number comes first. A feature is no neighbour of its own.
    """
    norm_U = W_dec_UD.double().norm(dim=1)
    unit_UD = (W_dec_UD.double() / norm_U.clamp_min(1e-30)[:, None]).float()
    kept = min(neighbours, len(unit_UD) - 1)
    pieces = [
        _nearest(unit_UD, block, kept)[max(start - block, 0) : stop - block]
        for block in range(start // BLOCK * BLOCK, stop, BLOCK)
    ]
    near = torch.cat(pieces) if pieces else torch.empty(0, kept, dtype=torch.long)
    own_FD, other_FND = unit_UD[start:stop].double(), unit_UD[near].double()
    cosines, order = _by_cosine((own_FD[:, None] * other_FND).sum(-1), near)
    encoder = torch.nn.functional.cosine_similarity(W_enc_UD[start:stop].double(), own_FD, dim=1, eps=1e-30)
    return Weights(encoder, norm_U[start:stop], order[:, :kept], cosines[:, :kept])


def _nearest(unit_UD: Tensor, block: int, kept: int) -> Tensor:
    """Candidates of features [block, block + BLOCK): int64 [rows, candidates], ascending."""
    rows = unit_UD[block : block + BLOCK]
    cosine = rows @ unit_UD.T
    cosine[torch.arange(len(rows)), torch.arange(block, block + len(rows))] = -torch.inf
    candidates = min(kept + SPARE, len(unit_UD) - 1)
    return cosine.topk(candidates, dim=1).indices.sort(dim=1).values


def _by_cosine(cosine: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Largest first; ids ascend, so that a stable sort puts the lower first among equal ones."""
    values, order = cosine.sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)
