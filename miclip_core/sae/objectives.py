"""The objective of every kind of SAE: losses of one batch and their gradients, written out by hand.

Gradients are this worker's share of those of the mean loss over the tokens of all workers; the trainer adds the shares.
Suffixes: N tokens of this worker, U latents, D width, G levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miclip_core.sae import dense, kernels
from miclip_core.sae.batch import Batch, Outcome, Weights, any_worker, ratio, sums_over, variance_of
from miclip_core.sae.parallel import Group
from miclip_core.sae.revival import revive
from miclip_core.sae.select import Selection, select
from schemas.sae import SaeSettings


def objective(settings: SaeSettings, weights: Weights, grads: Weights, batch: Batch) -> Outcome:
    """The losses of one batch; adds their gradients to `grads`, which hold zeros in the shapes of `weights`.

    Raises:
        BadTokens: NaN or infinite values in the batch; the weights have not changed then.
    """
    of_kind = {"relu": dense.relu, "gated": dense.gated, "jumprelu": dense.jumprelu}.get(settings.arch, selecting)
    return of_kind(settings, weights, grads, batch)


def selecting(settings: SaeSettings, weights: Weights, grads: Weights, batch: Batch) -> Outcome:
    """topk, batchtopk, matryoshka: sum_g w_g mean ||x - x_hat_g||^2 + alpha * aux; one level of weight 1 if not nested.

    x_hat_g is what the latents of the first g levels reconstruct; aux looks at the residual of all of them.
    """
    x_ND, tokens = batch.x_ND, batch.tokens
    c_ND = x_ND - weights["b_dec"]
    chosen = select(settings, weights, c_ND, batch)
    e_NGD = _residuals(c_ND, chosen, weights["W_dec"])
    e_ND = e_NGD[:, -1]
    sums = sums_over(
        batch.group, e=e_ND.sum(0), x=x_ND.sum(0), square_e_G=e_NGD.square().sum((0, 2)), square_x=x_ND.square().sum(),
        active=(chosen.values > 0).sum(),
    )  # fmt: skip
    variance, square_e_G = variance_of(batch, sums["square_x"], sums["x"]), sums["square_e_G"]
    level_weights_G = square_e_G.new_tensor(settings.level_weights or (1.0,))
    _backward(weights, grads, c_ND, chosen, e_NGD, (level_weights_G * (-2 / tokens)).to(x_ND))
    # aux is a ratio, and so of the order of the loss in units of unit_ms; elsewhere it is brought there
    scale = settings.aux_coefficient * (1.0 if settings.normalise == "unit_ms" else variance / tokens)
    spread = float(square_e_G[-1] - sums["e"].square().sum() / tokens)
    aux = revive(settings, weights, grads, c_ND, e_ND, batch, spread, scale)
    grads["b_dec"].sub_(grads["b_enc"] @ weights["W_enc"])  # through c = x - b_dec

    fired_U = torch.zeros(settings.latents, dtype=torch.bool, device=x_ND.device)
    fired_U[chosen.latents[chosen.values > 0]] = True
    return Outcome(
        loss=float((square_e_G * level_weights_G).sum()) / tokens + scale * aux,
        mse=float(square_e_G[-1]) / tokens,
        aux=aux,
        fvu=ratio(float(square_e_G[-1]), variance),
        l0=float(sums["active"]) / tokens,
        fired_U=any_worker(batch.group, fired_U),
        smallest=_smallest(chosen.values, batch.group, per_token=settings.arch == "topk"),
    )


def _residuals(c_ND: Tensor, chosen: Selection, W_dec_UD: Tensor) -> Tensor:
    """x - x_hat_g of every level, [N,G,D]."""
    parts = kernels.sparse_decode(chosen.latents, chosen.values, W_dec_UD, chosen.offsets)
    if chosen.levels == 1:
        return c_ND.sub(parts)[:, None]
    return c_ND[:, None] - parts.view(len(c_ND), chosen.levels, -1).cumsum(1)


def _backward(
    weights: Weights, grads: Weights, c_ND: Tensor, chosen: Selection, e_NGD: Tensor, factor_G: Tensor
) -> None:
    """Gradients of sum_g factor_g / -2 * ||e_g||^2 but for the way over c: only the rows of chosen latents are touched."""
    by_prefix_NGD = e_NGD * factor_G[:, None]
    # a level's own part is in the reconstructions of this level and of all after it
    to_part_NGD = by_prefix_NGD if chosen.levels == 1 else by_prefix_NGD.flip(1).cumsum(1).flip(1)
    to_part_ND = to_part_NGD.flatten(0, 1)
    c_ND = c_ND if chosen.levels == 1 else c_ND.repeat_interleave(chosen.levels, 0)
    latents, values, offsets = chosen.latents, chosen.values, chosen.offsets
    to_p = kernels.sparse_dots(latents, to_part_ND, weights["W_dec"], offsets) * (values > 0)
    kernels.accumulate_rows(grads["W_dec"], latents, values, to_part_ND, offsets)
    kernels.accumulate_rows(grads["W_enc"], latents, to_p, c_ND, offsets)
    grads["b_enc"].index_add_(0, latents.flatten(), to_p.flatten())
    grads["b_dec"].add_(to_part_NGD[:, 0].sum(0))


def _smallest(values: Tensor, group: Group, per_token: bool) -> float | None:
    """The least positive value: of the whole batch, or the mean over tokens [N,K] that have one."""
    least = torch.where(values > 0, values, torch.inf)
    if per_token:
        of_token = least.amin(1) if values.numel() else least.new_zeros(0)
        found = of_token[of_token.isfinite()]
        total, count = sums_over(
            group, total=found.sum(), count=torch.tensor(len(found), device=values.device)
        ).values()
        return float(total / count) if count else None
    lowest = -(least.min() if values.numel() else least.new_tensor(torch.inf))
    group.all_max(lowest)
    return -float(lowest) if torch.isfinite(lowest) else None
