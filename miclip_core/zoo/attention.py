"""Attention and layer norms as arithmetic that several families share: patterns, head results, statistics, readout rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from miclip_core.zoo.sitemap import AttentionMath, BlockWeights, Derived, Norm, promote
from schemas.models import Layout

CHAIN = ("q", "k", "v", "pattern", "z", "head_result")


@dataclass(eq=False)
class PlainAttention:
    """softmax(q k^T / sqrt(X)) v with one output matrix; weights are read when used, so they follow the module.

    weights: () -> BlockWeights. after_qk: applied to q and k [B, H, T, X] (qk-norm, rotary), identity if None.
    """

    weights: Callable[[], BlockWeights]
    after_qk: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def qkv(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w = self.weights()
        q, k, v = (
            torch.einsum("btd,hxd->bhtx", x_BTD, promote(W).to(x_BTD)) + promote(b).to(x_BTD)[None, :, None]
            for W, b in ((w.W_Q, w.b_Q), (w.W_K, w.b_K), (w.W_V, w.b_V))
        )
        if self.after_qk is not None:
            q, k = self.after_qk(q, k)
        return q, k, v

    def pattern(self, q_BHTX: Tensor, k_BHTX: Tensor) -> Tensor:
        return (q_BHTX @ k_BHTX.transpose(-1, -2) * q_BHTX.shape[-1] ** -0.5).softmax(-1)

    def mix(self, pattern_BHTT: Tensor, v_BHTX: Tensor) -> Tensor:
        return (pattern_BHTT @ v_BHTX).transpose(1, 2)

    def head_result(self, z_BTHX: Tensor) -> Tensor:
        return torch.einsum("bthx,hdx->bthd", z_BTHX, self.weights().W_O.to(z_BTHX))

    def output(self, z_BTHX: Tensor) -> Tensor:
        w = self.weights()
        return torch.einsum("bthx,hdx->btd", z_BTHX, w.W_O.to(z_BTHX)) + w.b_O.to(z_BTHX)

    def add_heads(self, head_result_BTHD: Tensor) -> Tensor:
        return head_result_BTHD.sum(2) + self.weights().b_O.to(head_result_BTHD)


def attention_sites(layer: int, math: AttentionMath, source: str) -> dict[str, Derived]:
    """q, k, v, pattern, z and head_result of block layer, derived from the attention's input `source`."""

    def take(x: Tensor, axis: int, rows: Tensor | None) -> Tensor:
        return x if rows is None else x.index_select(axis, rows)

    def all_three(x_BTD: Tensor, rows: Tensor | None) -> Tensor:
        return torch.stack(math.qkv(x_BTD))

    def one(which: int) -> Callable[..., Tensor]:
        return lambda qkv, rows: qkv[which]

    def pattern(q_BHTX: Tensor, k_BHTX: Tensor, rows: Tensor | None) -> Tensor:
        return math.pattern(take(q_BHTX, 2, rows), k_BHTX)

    def z(q_BHTX: Tensor, k_BHTX: Tensor, v_BHTX: Tensor, rows: Tensor | None) -> Tensor:
        return math.mix(math.pattern(take(q_BHTX, 2, rows), k_BHTX), v_BHTX)

    def head_result(q_BHTX: Tensor, k_BHTX: Tensor, v_BHTX: Tensor, rows: Tensor | None) -> Tensor:
        return math.head_result(z(q_BHTX, k_BHTX, v_BHTX, rows))

    q, k, v = f"q.{layer}", f"k.{layer}", f"v.{layer}"
    return {
        f"_qkv.{layer}": Derived((source,), all_three, "heads"),  # one projection serves all three
        q: Derived((f"_qkv.{layer}",), one(0), "heads"),
        k: Derived((f"_qkv.{layer}",), one(1), "heads"),
        v: Derived((f"_qkv.{layer}",), one(2), "heads"),
        f"pattern.{layer}": Derived((q, k), pattern, "heads", by_rows=True),
        f"z.{layer}": Derived((q, k, v), z, "tokens", by_rows=True),
        f"head_result.{layer}": Derived((q, k, v), head_result, "tokens", by_rows=True),
    }


def norm_numbers(module: Any) -> Norm:
    """A LayerNorm or RMS norm module as numbers; a missing scale is one, a missing shift zero."""
    gamma, beta = getattr(module, "weight", None), getattr(module, "bias", None)
    gamma = torch.ones(tuple(module.normalized_shape)) if gamma is None else gamma
    return Norm(gamma, torch.zeros_like(gamma) if beta is None else beta, norm_eps(module), not is_rms(module))


def is_rms(module: nn.Module) -> bool:
    """Whether a norm divides by the root mean square and subtracts nothing."""
    return "rmsnorm" in type(module).__name__.lower()


def norm_eps(module: Any) -> float:
    """What a norm adds to the variance."""
    return module.eps if hasattr(module, "eps") else module.variance_epsilon


def norm_statistics(x: Tensor, eps: float, subtract_mean: bool = True) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(population variance + eps) over the last axis, in two passes and at least fp32.

    subtract_mean: False for RMS norms, whose mean counts as zero.
    """
    x = promote(x)
    mean = x.mean(-1, keepdim=True) if subtract_mean else torch.zeros_like(x[..., :1])
    return mean.squeeze(-1), ((x - mean).square().mean(-1) + eps).sqrt()


def norm_sites(
    name: str, source: str, eps: float, block: int | None = None, subtract_mean: bool = True, layout: Layout = "tokens"
) -> dict[str, Derived]:
    """`name_mean` and `name_std` of the norm whose input is `source`."""
    end = "" if block is None else f".{block}"

    def statistic(which: int) -> Callable[..., Tensor]:
        return lambda x, rows: norm_statistics(x, eps, subtract_mean)[which]

    return {
        f"{name}_mean{end}": Derived((source,), statistic(0), layout),
        f"{name}_std{end}": Derived((source,), statistic(1), layout),
    }


def row_site(layer: int, rho: Callable[[int], Tensor], final_std: str | None) -> Derived:
    """`pattern_row.l` [B, H, T]: how much each token reaches the pooled vector through each head; rows sum to 1.

    The pooled vector is linear in the final tokens with weights rho_q / s_q (rho_q where the norm follows the
    pooling: final_std None). Rows are sum_q w_q A[q, :] with w = those weights divided by their sum; for a model that
    pools its class token that is the class token's attention row.
    """

    def compute(pattern_BHTT: Tensor, *more: Tensor | None) -> Tensor:
        std, rho_T = more[0], rho(pattern_BHTT.shape[-1]).to(pattern_BHTT)
        w_BT = (rho_T / std if isinstance(std, Tensor) else rho_T).expand(pattern_BHTT.shape[0], -1).to(pattern_BHTT)
        return torch.einsum("bq,bhqt->bht", w_BT / w_BT.sum(-1, keepdim=True), pattern_BHTT)

    needs = (f"pattern.{layer}",) if final_std is None else (f"pattern.{layer}", final_std)
    return Derived(needs, compute, "heads")


def recompute(
    math: AttentionMath, x_BTD: Tensor, edit: Callable[[str, Tensor], Tensor], heads: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The attention's output [B, T, D] from its input, with `edit(name, value)` applied at every step of CHAIN.

    heads: also write out every head's result; costly, so only where it is edited or read.
    Returns the output and the (edited) value of every step.
    """
    seen: dict[str, Tensor] = {}
    for name, value in zip(("q", "k", "v"), math.qkv(promote(x_BTD))):
        seen[name] = edit(name, value)
    seen["pattern"] = edit("pattern", math.pattern(seen["q"], seen["k"]))
    seen["z"] = edit("z", math.mix(seen["pattern"], seen["v"]))
    if not heads:
        return math.output(seen["z"]), seen
    seen["head_result"] = edit("head_result", math.head_result(seen["z"]))
    return math.add_heads(seen["head_result"]), seen


def in_own_dtype(module: nn.Module, x: Tensor) -> Tensor:
    """A norm (or Identity) applied in the dtype of its weights; the result has the dtype of x."""
    weight = getattr(module, "weight", None)
    return x if weight is None else module(x.to(weight)).to(x)
