"""Objectives of the kinds whose gradients need every pre-activation: relu, gated and jumprelu, a few tokens at a time.

Suffixes: N tokens of one slice, U latents, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from miclip_core.sae import kernels
from miclip_core.sae.batch import Batch, Outcome, Weights, any_worker, encoder_operands, ratio, sums_over, variance_of
from miclip_core.sae.schedule import penalty_share
from schemas.sae import DENSE_CELLS, SaeSettings


class _Tally:
    """Sums over the slices of a batch, in float64 where they are long."""

    def __init__(self, batch: Batch, latents: int) -> None:
        new = batch.x_ND.new_zeros
        self.batch = batch
        self.sums = {name: new((), dtype=torch.float64) for name in ("square_e", "square_x", "active", "penalty")}
        self.x_D = new(batch.x_ND.shape[1], dtype=torch.float64)
        self.fired_U = new(latents, dtype=torch.bool)

    def add(self, x_ND: Tensor, e_ND: Tensor, fired_NU: Tensor, penalty: Tensor) -> None:
        parts = {"square_e": e_ND.square(), "square_x": x_ND.square(), "active": fired_NU, "penalty": penalty}
        for name, part in parts.items():
            self.sums[name] += part.sum()
        self.x_D += x_ND.sum(0)
        self.fired_U |= fired_NU.any(0)

    def outcome(self, penalty_weight: float) -> Outcome:
        """loss = mse + penalty_weight * penalty per token."""
        sums, tokens = sums_over(self.batch.group, x=self.x_D, **self.sums), self.batch.tokens
        variance = variance_of(self.batch, sums["square_x"], sums["x"])
        mse = float(sums["square_e"]) / tokens
        return Outcome(
            loss=mse + penalty_weight * float(sums["penalty"]) / tokens,
            mse=mse,
            aux=0.0,
            fvu=ratio(float(sums["square_e"]), variance),
            l0=float(sums["active"]) / tokens,
            fired_U=any_worker(self.batch.group, self.fired_U),
            smallest=None,
        )


def relu(settings: SaeSettings, weights: Weights, grads: Weights, batch: Batch) -> Outcome:
    """mean ||e||^2 + l1 * mean sum_i f_i ||v_i|| with f = relu(p)."""
    l1, W_dec_UD = settings.l1 or 0.0, weights["W_dec"]
    norms_U = W_dec_UD.norm(dim=1)
    total_f_U = torch.zeros_like(norms_U)
    tally = _Tally(batch, settings.latents)
    for x, c, p in _slices(settings, weights, batch):
        f = p.relu_()
        e, to_x_hat = _reconstruct(c, f, W_dec_UD, batch.tokens)
        to_p = torch.addmm((l1 / batch.tokens * norms_U).expand_as(f), to_x_hat, W_dec_UD.T).mul_(f > 0)
        _add_gradients(grads, c, f, to_x_hat, to_p)
        total_f_U += f.sum(0)
        tally.add(x, e, f > 0, f @ norms_U)
    # d ||v|| / dv = v / ||v||
    grads["W_dec"].addcmul_(W_dec_UD, (l1 / batch.tokens * total_f_U / norms_U)[:, None])
    grads["b_dec"].sub_(grads["b_enc"] @ weights["W_enc"])
    return tally.outcome(l1)


def jumprelu(settings: SaeSettings, weights: Weights, grads: Weights, batch: Batch) -> Outcome:
    """mean ||e||^2 + lambda s(t) (L0 / k - 1)^2 with f = p 1[p > theta], gradients straight through the jump.

    With K(u) = 1[|u| < 1/2] and u = (p - theta) / h: df/dtheta = -theta/h K(u), dH/dtheta = -1/h K(u), df/dp = 1[p > theta],
    and H gives p none (Rajamanoharan et al. 2024, "Jumping Ahead"). L0 counts p > theta, so both halves of the kernel act.
    """
    assert settings.k is not None
    W_dec_UD, theta_U, h = weights["W_dec"], weights["theta"], settings.bandwidth
    in_window_U = torch.zeros_like(theta_U)
    tally = _Tally(batch, settings.latents)
    for x, c, p in _slices(settings, weights, batch):
        fires, near = p > theta_U, ((p - theta_U).abs_() < h / 2).to(p.dtype)
        f = p.mul_(fires)
        e, to_x_hat = _reconstruct(c, f, W_dec_UD, batch.tokens)
        to_f = to_x_hat @ W_dec_UD.T
        in_window_U += near.sum(0)
        grads["theta"].sub_((to_f * near).sum(0) * theta_U / h)
        _add_gradients(grads, c, f, to_x_hat, to_f.mul_(fires))
        tally.add(x, e, fires, e.new_zeros(()))
    grads["b_dec"].sub_(grads["b_enc"] @ weights["W_enc"])
    outcome = tally.outcome(0.0)
    weight, excess = settings.sparsity_coefficient * penalty_share(settings, batch.step), outcome.l0 / settings.k - 1
    grads["theta"].sub_(in_window_U, alpha=weight * 2 * excess / settings.k / (h * batch.tokens))
    return outcome._replace(loss=outcome.mse + weight * excess**2)


def gated(settings: SaeSettings, weights: Weights, grads: Weights, batch: Batch) -> Outcome:
    """mean ||e||^2 + l1 * mean sum relu(gate) + mean ||x - (relu(gate) W_dec + b_dec)||^2, the last with frozen W_dec, b_dec.

    p = W_enc (x - b_dec), gate = p + b_gate, f = 1[gate > 0] relu(exp(r_mag) p + b_mag) (Rajamanoharan et al. 2024,
    "Improving dictionary learning with gated sparse autoencoders").
    """
    l1, W_dec_UD, stretch_U = settings.l1 or 0.0, weights["W_dec"], weights["r_mag"].exp()
    tally = _Tally(batch, settings.latents)
    to_p_sum_U = torch.zeros_like(stretch_U)
    for x, c, p in _slices(settings, weights, batch):
        opened = (p + weights["b_gate"]).relu_()
        is_open = opened > 0
        f = torch.addcmul(weights["b_mag"], p, stretch_U).relu_().mul_(is_open)
        e, to_x_hat = _reconstruct(c, f, W_dec_UD, batch.tokens)
        e_gate, to_x_gate = _reconstruct(c, opened, W_dec_UD, batch.tokens)
        to_magnitude = (to_x_hat @ W_dec_UD.T).mul_(f > 0)
        to_gate = (to_x_gate @ W_dec_UD.T).add_(l1 / batch.tokens).mul_(is_open)
        to_p = torch.addcmul(to_gate, to_magnitude, stretch_U)
        grads["r_mag"].add_((to_magnitude * p).sum(0) * stretch_U)
        grads["b_mag"].add_(to_magnitude.sum(0))
        grads["b_gate"].add_(to_gate.sum(0))
        grads["W_enc"].addmm_(to_p.T, c)
        grads["W_dec"].addmm_(f.T, to_x_hat)
        grads["b_dec"].add_(to_x_hat.sum(0))
        to_p_sum_U += to_p.sum(0)
        tally.add(x, e, f > 0, l1 * opened.sum() + e_gate.square().sum())
    grads["b_dec"].sub_(to_p_sum_U @ weights["W_enc"])
    return tally.outcome(1.0)


def _slices(settings: SaeSettings, weights: Weights, batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """x, c = x - b_dec and p of as many tokens at a time as fit beside all latents."""
    W_enc_UD, dtype = encoder_operands(settings, weights)
    bias_U = weights.get("b_enc", torch.zeros_like(W_enc_UD[:, 0], dtype=batch.x_ND.dtype))
    for x in batch.x_ND.split(max(1, DENSE_CELLS // settings.latents)):
        c = x - weights["b_dec"]
        yield x, c, kernels.pre_activations(c.to(dtype), W_enc_UD, bias_U)


def _reconstruct(c_ND: Tensor, f_NU: Tensor, W_dec_UD: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The residual, and the gradient of mean ||e||^2 to the reconstruction."""
    e_ND = torch.addmm(c_ND, f_NU, W_dec_UD, alpha=-1)
    return e_ND, e_ND * (-2 / tokens)


def _add_gradients(grads: Weights, c_ND: Tensor, f_NU: Tensor, to_x_hat_ND: Tensor, to_p_NU: Tensor) -> None:
    """All but the way over c = x - b_dec."""
    grads["W_dec"].addmm_(f_NU.T, to_x_hat_ND)
    grads["W_enc"].addmm_(to_p_NU.T, c_ND)
    grads["b_enc"].add_(to_p_NU.sum(0))
    grads["b_dec"].add_(to_x_hat_ND.sum(0))
