"""The auxiliary loss that revives dead latents: they learn what the live ones leave unexplained."""

from __future__ import annotations

import torch
from torch import Tensor

from miclip_core.sae import kernels
from miclip_core.sae.batch import Batch, Weights, encoder_operands, sums_over
from schemas.sae import DENSE_CELLS, SaeSettings

_BLOCK = 4096


def revive(
    settings: SaeSettings, weights: Weights, grads: Weights, c_ND: Tensor, e_ND: Tensor, batch: Batch, spread: float,
    scale: float,
) -> float:  # fmt: skip
    """aux = sum ||e - e_hat||^2 / sum ||e - mean e||^2, with e_hat from the k_aux largest of the dead latents alone.

    No decoder bias enters e_hat, e takes no gradient, and the encoder rows of dead latents do (Gao et al. 2024, A.2).
    spread: the denominator over all workers; scale: what the loss multiplies aux with. Adds gradients of
    scale * aux to W_enc, b_enc and W_dec. Gives aux, 0 where no latent is dead or the residual has no spread.
    """
    dead = batch.dead
    if len(dead) == 0 or spread <= 0 or scale == 0:
        return 0.0
    k = min(settings.aux_k or max(1, c_ND.shape[1] // 2), len(dead))
    W_enc_UD, dtype = encoder_operands(settings, weights)
    missed = e_ND.new_zeros(())
    rows = max(1, DENSE_CELLS // len(dead))
    for c, e in zip(c_ND.split(rows), e_ND.split(rows)):
        values, latents = kernels.blockwise_topk(c.to(dtype), W_enc_UD, weights["b_enc"], k, among=dead)
        f = values.new_zeros(len(c), len(dead)).scatter_(1, torch.searchsorted(dead, latents), values.relu_())
        missing = -e
        for start, some in _blocks(dead):
            missing.addmm_(f[:, start : start + len(some)], weights["W_dec"][some])
        missed += missing.square().sum()
        _backward(weights, grads, c, f, missing * (2 * scale / spread), dead)
    (total,) = sums_over(batch.group, missed=missed).values()
    return float(total) / spread


def _backward(weights: Weights, grads: Weights, c_ND: Tensor, f_NU: Tensor, to_e_hat_ND: Tensor, dead: Tensor) -> None:
    for start, some in _blocks(dead):
        f = f_NU[:, start : start + len(some)]
        to_p = (to_e_hat_ND @ weights["W_dec"][some].T) * (f > 0)
        grads["W_dec"].index_add_(0, some, f.T @ to_e_hat_ND)
        grads["W_enc"].index_add_(0, some, to_p.T @ c_ND)
        grads["b_enc"].index_add_(0, some, to_p.sum(0))


def _blocks(dead: Tensor) -> list[tuple[int, Tensor]]:
    """The dead latents in parts whose rows are cheap to copy."""
    return [(i * _BLOCK, some) for i, some in enumerate(dead.split(_BLOCK))]
