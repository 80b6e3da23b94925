"""From tokens to one vector: fixed pooling rows, and a learned query that attends over tokens, whose heads add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from miclip_core.zoo.sitemap import Derived


def pooling_row(pool: str, tokens: int, prefix: int) -> Tensor:
    """Weights rho [T] of a fixed pooling: the class token (`tok`), or the mean of all tokens after `prefix` (`avg`)."""
    weights = torch.zeros(tokens, dtype=torch.float64)
    if pool == "tok":
        weights[0] = 1
    else:
        weights[prefix:] = 1 / (tokens - prefix)
    return weights


@dataclass(frozen=True, eq=False)
class PoolWeights:
    """One query over tokens: query [H, X] as it meets the keys; W_K, W_V [H, X, D], b_* [H, X]; W_O [H, E, X], b_O [E]."""

    query: Tensor
    W_K: Tensor
    W_V: Tensor
    b_K: Tensor
    b_V: Tensor
    W_O: Tensor
    b_O: Tensor


@dataclass(eq=False)
class QueryPool:
    """u = sum_h W_O,h (sum_i a_hi v_hi) + b_O with a = softmax(q k^T / sqrt(X)): linear in the values, exactly.

    weights: () -> PoolWeights, read when used. after_k: applied to keys [B, H, T, X] (a norm), identity if None.
    """

    weights: Callable[[], PoolWeights]
    after_k: Callable[[Tensor], Tensor] | None = None

    def pattern(self, x_BTD: Tensor) -> Tensor:
        """Attention of the query over the tokens [B, H, T]; rows sum to 1."""
        w = self.weights()
        k_BHTX = _project(x_BTD, w.W_K, w.b_K)
        k_BHTX = k_BHTX if self.after_k is None else self.after_k(k_BHTX)
        query_HX = w.query.to(k_BHTX)
        return (torch.einsum("hx,bhtx->bht", query_HX, k_BHTX) * query_HX.shape[-1] ** -0.5).softmax(-1)

    def values(self, x_BTD: Tensor) -> Tensor:
        """v = W_V t + b_V of every token and head [B, H, T, X]."""
        w = self.weights()
        return _project(x_BTD, w.W_V, w.b_V)


def query_pool_sites(pool: QueryPool, source: str, prefix: int | None = None) -> dict[str, Derived]:
    """`pool_v` and `pool_pattern`, derived from the tokens that the pool attends to (the site `source`).

    prefix: how many tokens come before the patches there, if that is not what the rest of the model has.
    """
    return {
        "pool_v": Derived((source,), lambda x, rows: pool.values(x), "heads", prefix=prefix),
        "pool_pattern": Derived((source,), lambda x, rows: pool.pattern(x), "heads", prefix=prefix),
    }


def torch_pool_weights(attention: nn.MultiheadAttention, query_D: Tensor) -> PoolWeights:
    """PoolWeights of torch's own attention for one query [D], whichever way it stores its three projections."""
    heads = attention.num_heads
    if attention.in_proj_weight is not None:
        W_Q, W_K, W_V = attention.in_proj_weight.chunk(3)
    else:
        W_Q, W_K, W_V = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
    bias = attention.in_proj_bias
    b_Q, b_K, b_V = (W_Q.new_zeros(len(W_Q)),) * 3 if bias is None else bias.chunk(3)
    out = attention.out_proj
    return PoolWeights(
        query=(W_Q @ query_D + b_Q).unflatten(0, (heads, -1)),
        W_K=W_K.unflatten(0, (heads, -1)),
        W_V=W_V.unflatten(0, (heads, -1)),
        b_K=b_K.unflatten(0, (heads, -1)),
        b_V=b_V.unflatten(0, (heads, -1)),
        W_O=out.weight.unflatten(1, (heads, -1)).movedim(1, 0),
        b_O=W_Q.new_zeros(len(out.weight)) if out.bias is None else out.bias,
    )


def first_query(x: Tensor) -> Tensor:
    """The pooled row of a pool's output: its first query."""
    return x[:, 0]


def put_first_query(whole: Tensor, first: Tensor) -> Tensor:
    """The pool's output with another pooled row."""
    return torch.cat([first[:, None], whole[:, 1:]], 1)


def _project(x_BTD: Tensor, W_HXD: Tensor, b_HX: Tensor) -> Tensor:
    return torch.einsum("btd,hxd->bhtx", x_BTD, W_HXD.to(x_BTD)) + b_HX.to(x_BTD)[None, :, None]
