"""The arithmetic of timm's attention modules: fused or separate projections, shared keys, rotary code, norms inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from miclip_core.zoo.attention import PlainAttention, in_own_dtype
from miclip_core.zoo.pooling import PoolWeights, QueryPool
from schemas.errors import UnsupportedBlock


@dataclass(eq=False, kw_only=True)
class TimmAttention(PlainAttention):
    """Attention with optional norms of queries and keys, rotary code on the patches, and a norm before the output matrix.

    The inner norm is split at its value in the forward: head h of a token gets gamma_h (z_h - mean) / std + beta_h,
    where mean and std are those of all heads together, so that the heads still add up to the output exactly.

    attention: the module. rope: () -> code of the patches, or None. heads_add_up: False where a norm follows.
    """

    attention: Any
    rope: Callable[[], Tensor | None]
    heads_add_up: bool = True

    def qkv(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(x_BTD)
        q, k = in_own_dtype(self.attention.q_norm, q), in_own_dtype(self.attention.k_norm, k)
        code = self.rope()
        return (q, k, v) if code is None else (self._rotated(q, code), self._rotated(k, code), v)

    def output(self, z_BTHX: Tensor) -> Tensor:
        return super().output(self._normed(z_BTHX))

    def head_result(self, z_BTHX: Tensor) -> Tensor:
        if not self.heads_add_up:
            raise UnsupportedBlock("a norm follows the attention and mixes its heads; read z and attn_out instead")
        return super().head_result(self._normed(z_BTHX))

    def _rotated(self, x_BHTX: Tensor, code_PW: Tensor) -> Tensor:
        """Turn the patches' vectors by their positions; prefix tokens have none."""
        from timm.layers import apply_rot_embed_cat  # timm is loaded already: it made the module

        first = self.attention.num_prefix_tokens
        half = getattr(self.attention, "rotate_half", False)
        patches = apply_rot_embed_cat(x_BHTX[:, :, first:], code_PW.to(x_BHTX), half=half)
        return torch.cat([x_BHTX[:, :, :first], patches], 2)

    def _normed(self, z_BTHX: Tensor) -> Tensor:
        if is_gated(self.attention):
            raise UnsupportedBlock("a gate that reads the attention's input scales its heads; read attn_out instead")
        return in_own_dtype(self.attention.norm, z_BTHX.flatten(2)).unflatten(2, z_BTHX.shape[2:])


def is_gated(attention: Any) -> bool:
    """Whether a gate computed from the attention's input multiplies its heads."""
    return getattr(attention, "gate", None) is not None


def projections(attention: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """W_Q, W_K, W_V [H, X, D] and b_Q, b_K, b_V [H, X], from one matrix or three; a missing bias is zero."""
    heads, inner = attention.num_heads, attention.proj.in_features
    width = inner // heads
    if getattr(attention, "qkv", None) is not None:
        weights, biases = attention.qkv.weight.split(inner), _fused_biases(attention, inner)
    else:
        linears = (attention.q_proj, attention.k_proj, attention.v_proj)
        weights = tuple(linear.weight for linear in linears)
        biases = tuple(
            linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias for linear in linears
        )
    return tuple(_by_head(x, heads, width) for x in (*weights, *biases))  # type: ignore[return-value]


def _fused_biases(attention: Any, inner: int) -> tuple[Tensor, ...]:
    if attention.qkv.bias is not None:
        return attention.qkv.bias.split(inner)
    if getattr(attention, "q_bias", None) is not None:
        return attention.q_bias, attention.k_bias, attention.v_bias
    return (attention.qkv.weight.new_zeros(inner),) * 3


def _by_head(x: Tensor, heads: int, width: int) -> Tensor:
    """Rows by head; where several heads share keys and values, each gets its copy."""
    x = x.unflatten(0, (-1, width))
    return x if len(x) == heads else x.repeat_interleave(heads // len(x), 0)


# ---------------------------------------------------------------- the pool of a learned query


def pool_math(pool: Any) -> QueryPool:
    """timm's latent attention pool as arithmetic, for its first query."""
    return QueryPool(partial(_pool_weights, pool), partial(in_own_dtype, pool.k_norm))


def _pool_weights(pool: Any) -> PoolWeights:
    if pool.pos_embed is not None:
        raise UnsupportedBlock("the pool adds position embeddings of its own; no rule for them")
    heads = pool.num_heads
    W_K, W_V = pool.kv.weight.unflatten(0, (2, heads, -1))
    bias = pool.kv.bias
    b_K, b_V = (torch.zeros_like(W_K[..., 0]),) * 2 if bias is None else bias.unflatten(0, (2, heads, -1))
    out = pool.proj
    return PoolWeights(
        query=pool.q_norm(pool.q(pool.latent[0, 0]).unflatten(0, (heads, -1))),
        W_K=W_K,
        W_V=W_V,
        b_K=b_K,
        b_V=b_V,
        W_O=out.weight.unflatten(1, (heads, -1)).movedim(1, 0),
        b_O=out.bias,
    )
