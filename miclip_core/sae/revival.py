"""The auxiliary loss that revives dead latents: they learn what the live ones leave unexplained."""

from __future__ import annotations

import torch
from torch import Tensor

from miclip_core.sae import kernels
from miclip_core.sae.batch import Batch, Weights, encoder_operands, sums_over
from schemas.sae import DENSE_CELLS, SaeSettings

_FEW = 4096
"""Up to so many dead latents dense products are faster than sparse ones, though most of their factors are 0."""


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
    learn = _learn_densely if len(dead) <= _FEW else _learn_sparsely
    missed = e_ND.new_zeros((), dtype=torch.float64)
    rows = max(1, DENSE_CELLS // min(len(dead), _FEW))
    for c, e in zip(c_ND.split(rows), e_ND.split(rows)):
        values, latents = kernels.blockwise_topk(c.to(dtype), W_enc_UD, weights["b_enc"], k, among=dead)
        missed += learn(weights, grads, c, e, latents, values.relu_(), 2 * scale / spread, dead)
    return float(sums_over(batch.group, missed=missed)["missed"]) / spread


def _learn_sparsely(
    weights: Weights, grads: Weights, c_ND: Tensor, e_ND: Tensor, latents_NK: Tensor, f_NK: Tensor, factor: float,
    dead: Tensor,
) -> Tensor:  # fmt: skip
    """Gradients of factor / 2 * sum ||e - e_hat||^2; gives the sum itself."""
    missing_ND = kernels.sparse_decode(latents_NK, f_NK, weights["W_dec"]) - e_ND
    to_e_hat_ND = missing_ND * factor
    to_p_NK = kernels.sparse_dots(latents_NK, to_e_hat_ND, weights["W_dec"]) * (f_NK > 0)
    kernels.accumulate_rows(grads["W_dec"], latents_NK, f_NK, to_e_hat_ND)
    kernels.accumulate_rows(grads["W_enc"], latents_NK, to_p_NK, c_ND)
    grads["b_enc"].index_add_(0, latents_NK.flatten(), to_p_NK.flatten())
    return missing_ND.square().sum()


def _learn_densely(
    weights: Weights, grads: Weights, c_ND: Tensor, e_ND: Tensor, latents_NK: Tensor, f_NK: Tensor, factor: float,
    dead: Tensor,
) -> Tensor:  # fmt: skip
    """The same by way of all activations [N, |D|] of the dead latents."""
    W_dec = weights["W_dec"][dead]
    f = f_NK.new_zeros(len(c_ND), len(dead)).scatter_(1, torch.searchsorted(dead, latents_NK), f_NK)
    missing_ND = torch.addmm(e_ND, f, W_dec, beta=-1)
    to_e_hat_ND = missing_ND * factor
    to_p = (to_e_hat_ND @ W_dec.T).mul_(f > 0)
    grads["W_dec"].index_add_(0, dead, f.T @ to_e_hat_ND)
    grads["W_enc"].index_add_(0, dead, to_p.T @ c_ND)
    grads["b_enc"].index_add_(0, dead, to_p.sum(0))
    return missing_ND.square().sum()
