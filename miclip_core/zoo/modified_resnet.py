"""CLIP's ModifiedResNet: a three-convolution stem, bottleneck stages, and attention pooling whose heads add up exactly."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from miclip_core.zoo.residual import residual_sites, residual_steps
from miclip_core.zoo.sitemap import Derived, Entry, Family, Native, promote

STAGES = (1, 2, 3, 4)


def matches(visual: nn.Module) -> bool:
    """A tower with four stages and an attention pool with separate projections."""
    return hasattr(visual, "layer4") and hasattr(getattr(visual, "attnpool", None), "c_proj")


def describe(visual: Any) -> Family:
    """The site map of one tower. `n_blocks` counts residual blocks, `width` is that of the last stage."""
    pool = visual.attnpool
    width = pool.q_proj.in_features
    side = round((pool.positional_embedding.shape[0] - 1) ** 0.5)
    return Family(
        name="modified_resnet",
        visual=visual,
        sites=_sites(visual, (side, side)),
        forward=visual,
        n_blocks=sum(len(getattr(visual, f"layer{s}")) for s in STAGES),
        width=width,
        grid=(side, side),
        input_hw=(side * 32, side * 32),
        norm_eps=visual.bn1.eps,
        act_kind="relu",
        pool="attnpool",
        final_norm_position="none",
        n_heads=pool.num_heads,
        head_dim=width // pool.num_heads,
        steps=residual_steps(visual),
    )


def _sites(visual: Any, grid: tuple[int, int]) -> dict[str, Entry]:
    sites: dict[str, Entry] = {"stem": Native(visual.avgpool, layout="map")}
    for s in STAGES:
        stage = getattr(visual, f"layer{s}")
        for b, block in enumerate(stage):
            sites |= residual_sites(block, f"conv.{s}.{b}")
        sites[f"stage.{s}"] = Native(stage, layout="map")
    return sites | _pool_sites(visual.attnpool, grid) | {"embedding": Native(visual, layout="vector")}


# ---------------------------------------------------------------- the attention pool, computed from its input


def _pool_sites(pool: Any, grid: tuple[int, int]) -> dict[str, Entry]:
    where: dict[str, Any] = {"layout": "heads", "grid": grid, "prefix": 1}
    return {
        "pool_in": Native(pool, "input", "map"),
        "pool_v": Derived(("pool_in",), partial(pool_values, pool), **where),
        "pool_pattern": Derived(("pool_in",), partial(pool_pattern, pool), **where),
        "pool_out": Native(pool, layout="vector"),
    }


def pool_tokens(pool: Any, map_BCIJ: Tensor) -> Tensor:
    """Tokens [B, 1 + h w, C]: the mean of the map, then its positions row-major, plus position embeddings."""
    x_BTC = promote(map_BCIJ).flatten(2).transpose(1, 2)
    x_BTC = torch.cat([x_BTC.mean(1, keepdim=True), x_BTC], 1)
    return x_BTC + pool.positional_embedding.to(x_BTC)


def _projected(pool: Any, linear: Any, x_BTC: Tensor) -> Tensor:
    y = nn.functional.linear(x_BTC, linear.weight.to(x_BTC), linear.bias.to(x_BTC))
    return y.unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)


def pool_pattern(pool: Any, map_BCIJ: Tensor, rows: Tensor | None = None) -> Tensor:
    """Attention of the mean token over all tokens [B, H, T]; rows sum to 1."""
    x_BTC = pool_tokens(pool, map_BCIJ)
    q_BHX = _projected(pool, pool.q_proj, x_BTC[:, :1]).squeeze(2)
    k_BHTX = _projected(pool, pool.k_proj, x_BTC)
    return torch.einsum("bhx,bhtx->bht", q_BHX, k_BHTX).mul(q_BHX.shape[-1] ** -0.5).softmax(-1)


def pool_values(pool: Any, map_BCIJ: Tensor, rows: Tensor | None = None) -> Tensor:
    """Values v = V_h t + b_v [B, H, T, X]; sum_h C_h (pattern_h v_h) + b_c is the pooled output, exactly."""
    return _projected(pool, pool.v_proj, pool_tokens(pool, map_BCIJ))
