"""The parts of a sparse autoencoder that decide its speed: exact top-k over blocks of latents, sparse decode, sparse gradients."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 4096


def blockwise_topk(x_ND: Tensor, W_UD: Tensor, b_U: Tensor, k: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The k largest pre-activations `x @ W^T + b` of each token and their latents; never more than N x (block + k) at once.

    x [N,d], W [U,d], b [U] -> values [N,k] descending, latents int64 [N,k]. Of equal values the lowest latent is kept
    and stands first, whatever the block. k is at most U.
    """
    best: tuple[Tensor, Tensor] | None = None
    for start in range(0, W_UD.shape[0], block):
        p_NU = torch.addmm(b_U[start : start + block], x_ND, W_UD[start : start + block].T)
        values, order = p_NU.sort(dim=1, descending=True, stable=True)
        here = values[:, :k], order[:, :k] + start
        if best is not None:
            both = torch.cat((best[0], here[0]), 1), torch.cat((best[1], here[1]), 1)
            values, order = both[0].sort(dim=1, descending=True, stable=True)
            here = values[:, :k], both[1].gather(1, order[:, :k])
        best = here
    assert best is not None
    return best[0].contiguous(), best[1].contiguous()


def sparse_decode(idx_NK: Tensor, val_NK: Tensor, W_UD: Tensor) -> Tensor:
    """`sum_j val[n,j] * W[idx[n,j]]`: latents int [N,K], values [N,K], W [U,d] -> [N,d]."""
    return torch.nn.functional.embedding_bag(idx_NK, W_UD, per_sample_weights=val_NK, mode="sum")


def accumulate_rows(out_UD: Tensor, idx_NK: Tensor, coef_NK: Tensor, rows_ND: Tensor) -> None:
    """`out[idx[n,j]] += coef[n,j] * rows[n]` in place, in the order of the tokens: out [U,d], idx and coef [N,K], rows [N,d]."""
    k = idx_NK.shape[1]
    for j in range(k):
        out_UD.index_add_(0, idx_NK[:, j], coef_NK[:, j, None] * rows_ND)
