"""Slow, obvious trainers of every kind of SAE: dense float64 matrices, autograd, torch.optim.Adam. They share no code with ours."""

from __future__ import annotations

import torch
from torch import Tensor

from schemas.sae import SaeSettings


class Jump(torch.autograd.Function):
    """f = p 1[p > theta]; df/dp = 1[p > theta], df/dtheta = -(theta/h) 1[|p - theta| < h/2]."""

    @staticmethod
    def forward(ctx, p: Tensor, theta: Tensor, h: float) -> Tensor:
        ctx.save_for_backward(p, theta)
        ctx.h = h
        return torch.where(p > theta, p, torch.zeros_like(p))

    @staticmethod
    def backward(ctx, grad: Tensor):
        p, theta = ctx.saved_tensors
        inside = ((p - theta).abs() / ctx.h < 0.5).double()
        return torch.where(p > theta, grad, torch.zeros_like(grad)), (grad * -(theta / ctx.h) * inside).sum(0), None


class Count(torch.autograd.Function):
    """H(p - theta); dH/dtheta = -(1/h) 1[|p - theta| < h/2], and nothing to p."""

    @staticmethod
    def forward(ctx, p: Tensor, theta: Tensor, h: float) -> Tensor:
        ctx.save_for_backward(p, theta)
        ctx.h = h
        return (p > theta).double()

    @staticmethod
    def backward(ctx, grad: Tensor):
        p, theta = ctx.saved_tensors
        inside = ((p - theta).abs() / ctx.h < 0.5).double()
        return None, (grad * -(1 / ctx.h) * inside).sum(0), None


def keep_of_each(p: Tensor, k: int) -> Tensor:
    """1 at the k largest of each row."""
    return torch.zeros_like(p).scatter(1, p.argsort(dim=1, descending=True)[:, :k], 1.0)


def keep_of_all(p: Tensor, total: int) -> Tensor:
    """1 at the `total` largest of the matrix."""
    return (
        torch.zeros(p.numel(), dtype=p.dtype).scatter(0, p.flatten().argsort(descending=True)[:total], 1.0).view_as(p)
    )


def penalty_share(s: SaeSettings, step: int) -> float:
    return min(1.0, step / s.sparsity_warmup_steps) if s.sparsity_warmup_steps else 1.0


def losses(s: SaeSettings, w: dict[str, Tensor], x: Tensor, step: int = 0, dead: list[int] | None = None):
    """(loss, mse, aux, activations) of tokens x [N,d] in training units."""
    c = x - w["b_dec"]
    p = c @ w["W_enc"].T
    if s.arch == "gated":
        gate = (p + w["b_gate"]).relu()
        f = (gate > 0) * (p * w["r_mag"].exp() + w["b_mag"]).relu()
        x_hat = f @ w["W_dec"] + w["b_dec"]
        mse = (x - x_hat).square().sum(1).mean()
        via_gate = gate @ w["W_dec"].detach() + w["b_dec"].detach()
        return mse + s.l1 * gate.sum(1).mean() + (x - via_gate).square().sum(1).mean(), mse, 0.0, f
    p = p + w["b_enc"]
    if s.arch == "relu":
        f = p.relu()
        mse = (x - f @ w["W_dec"] - w["b_dec"]).square().sum(1).mean()
        return mse + s.l1 * (f * w["W_dec"].norm(dim=1)).sum(1).mean(), mse, 0.0, f
    if s.arch == "jumprelu":
        f = Jump.apply(p, w["theta"], s.bandwidth)
        l0 = Count.apply(p, w["theta"], s.bandwidth).sum(1).mean()
        mse = (x - f @ w["W_dec"] - w["b_dec"]).square().sum(1).mean()
        return mse + s.sparsity_coefficient * penalty_share(s, step) * (l0 / s.k - 1).square(), mse, 0.0, f
    keep = keep_of_each(p.relu(), s.k) if s.arch == "topk" else keep_of_all(p.relu(), s.k * len(x))
    f = p.relu() * keep.detach()
    sizes, weights = s.group_sizes or (s.latents,), s.level_weights or (1.0,)
    loss = torch.zeros((), dtype=x.dtype)
    end = 0
    for size, weight in zip(sizes, weights):
        end += size
        e = x - (f[:, :end] @ w["W_dec"][:end] + w["b_dec"])
        mse = e.square().sum(1).mean()
        loss = loss + weight * mse
    aux = torch.zeros((), dtype=x.dtype)
    if dead:
        residual = e.detach()
        p_dead = p.relu()[:, dead]
        f_dead = p_dead * keep_of_each(p_dead, min(s.aux_k or x.shape[1] // 2, len(dead))).detach()
        e_hat = f_dead @ w["W_dec"][dead]
        aux = (residual - e_hat).square().sum() / (residual - residual.mean(0)).square().sum()
    scale = s.aux_coefficient * (1 if s.normalise == "unit_ms" else (x - x.mean(0)).square().sum() / len(x))
    return loss + scale * aux, mse, aux, f


def middle(rows: Tensor) -> Tensor:
    """The geometric median: the mean weighted by one over the distance to the last guess, over and over."""
    guess = rows.mean(0)
    for _ in range(100):
        weights = [1 / max(float((row - guess).norm()), 1e-12) for row in rows]
        last, guess = guess, sum(w * row for w, row in zip(weights, rows, strict=True)) / sum(weights)
        if float((guess - last).norm()) < 1e-5:
            break
    return guess


class DenseTrainer:
    """The same run step by step, as a textbook would write it."""

    def __init__(self, s: SaeSettings, weights: dict[str, Tensor]) -> None:
        self.s = s
        self.w = {name: value.detach().double().clone().requires_grad_() for name, value in weights.items()}
        self.adam = torch.optim.Adam(self.w.values(), lr=1.0, betas=s.betas, fused=False, foreach=False)
        self.since = torch.zeros(s.latents, dtype=torch.int64)
        self.steps = 0

    def begin(self, rows: Tensor) -> None:
        rows, d = rows.double(), rows.shape[1]
        self.mu = {"mean": rows.mean(0), "none": torch.zeros(d).double(), "geometric_median": middle(rows)}[
            self.s.centre
        ]
        distances = (rows - self.mu).norm(dim=1)
        scales = {"unit_ms": distances.square().mean().sqrt(), "sqrt_d": distances.mean() / d**0.5, "none": 1.0}
        self.scale = float(scales[self.s.normalise])

    def step(self, x: Tensor) -> dict[str, float]:
        s, W_dec = self.s, self.w["W_dec"]
        x = (x.double() - self.mu) / self.scale
        dead = (self.since >= s.dead_tokens).nonzero().flatten().tolist()
        self.adam.zero_grad()
        loss, mse, aux, f = losses(s, self.w, x, self.steps, dead)
        loss.backward()
        with torch.no_grad():
            v = W_dec / W_dec.norm(dim=1, keepdim=True)
            W_dec.grad -= (W_dec.grad * v).sum(1, keepdim=True) * v
            norm = torch.nn.utils.clip_grad_norm_(self.w.values(), s.grad_clip)
            self.adam.param_groups[0]["lr"] = self.rate()
            self.adam.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
            if s.arch == "jumprelu":
                self.w["theta"].clamp_(min=0)
            self.since += len(x)
            self.since[(f > 0).any(0)] = 0
        self.steps += 1
        return {"loss": float(loss), "mse": float(mse), "aux": float(aux), "l0": float((f > 0).double().sum(1).mean()),
                "dead": len(dead), "grad_norm": float(norm)}  # fmt: skip

    def rate(self) -> float:
        s, t = self.s, self.steps
        up = min(1.0, t / s.warmup_steps) if s.warmup_steps else 1.0
        down = min(1.0, (s.steps - t) / (s.steps - s.decay_from * s.steps)) if s.decay_from < 1 else 1.0
        return s.lr * min(up, down)
