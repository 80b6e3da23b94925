"""SigLIP's pooling head: a learned query attends over the final tokens, and an MLP is added to what it gathers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from miclip_core.zoo.sitemap import Derived, Entry, Native


def map_pool_sites(head: Any, source: str = "lnf_out") -> dict[str, Entry]:
    """`pool_v`, `pool_pattern`, `pool_out` (before the MLP) and `pooled` (after it) of a head with torch attention.

    `pool_out` = sum over heads and tokens of W_O,h (pattern_h,i v_h,i) + b_O, exactly; `pooled` = pool_out + MLP(LN(pool_out)).
    """
    return {
        "pool_v": Derived((source,), partial(pool_values, head), "heads"),
        "pool_pattern": Derived((source,), partial(pool_pattern, head), "heads"),
        "pool_out": Native(
            head.attention,
            layout="vector",
            pick=0,
            read=lambda x_B1D: x_B1D[:, 0],
            write=lambda x_B1D, new_BD: new_BD[:, None],
        ),
        "pooled": Native(head, layout="vector"),
    }


def _projected(attention: nn.MultiheadAttention, which: int, x_BTD: Tensor) -> Tensor:
    """Queries (0), keys (1) or values (2) [B, H, T, X]."""
    weight = attention.in_proj_weight.chunk(3)[which]  # type: ignore[union-attr]
    bias = attention.in_proj_bias.chunk(3)[which]
    y_BTD = nn.functional.linear(x_BTD, weight.to(x_BTD), bias.to(x_BTD))
    return y_BTD.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def pool_pattern(head: Any, x_BTD: Tensor, rows: Tensor | None = None) -> Tensor:
    """Attention of the learned query over all tokens [B, H, T]; rows sum to 1."""
    q_BHX = _projected(head.attention, 0, head.probe.to(x_BTD)).squeeze(2)
    k_BHTX = _projected(head.attention, 1, x_BTD)
    return torch.einsum("bhx,bhtx->bht", q_BHX.expand(len(x_BTD), -1, -1), k_BHTX).mul(k_BHTX.shape[-1] ** -0.5).softmax(-1)


def pool_values(head: Any, x_BTD: Tensor, rows: Tensor | None = None) -> Tensor:
    """Values [B, H, T, X]."""
    return _projected(head.attention, 2, x_BTD)
