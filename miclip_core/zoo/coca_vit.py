"""CoCa's image tower: CLIP's blocks, then learned queries that attend over the tokens; the first of them is the image."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from miclip_core.zoo import clip_vit
from miclip_core.zoo.attention import norm_numbers, norm_sites
from miclip_core.zoo.pooling import QueryPool, first_query, put_first_query, query_pool_sites, torch_pool_weights
from miclip_core.zoo.sitemap import Entry, Family, Native, Readout

_FINAL = ("lnf_in", "lnf_mean", "lnf_std", "lnf_out", "pooled", "pattern_row", "embedding")


def matches(visual: nn.Module) -> bool:
    """A CLIP tower with one attentional pool, whose first query is the image."""
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    pool = getattr(visual, "attn_pool", None)
    second = getattr(visual, "attn_pool_contrastive", None)
    return blocks is not None and pool is not None and second is None and getattr(visual, "pool_type", "tok") == "tok"


def describe(visual: Any) -> Family:
    """CLIP's site map up to the last residual, and the pool's own sites after it.

    The norm of the tokens before the pool plays the part of the final norm; another one follows the pool.
    """
    family = clip_vit.describe(visual)
    sites = {path: entry for path, entry in family.sites.items() if path.split(".")[0] not in _FINAL}
    return replace(
        family,
        name="coca_vit",
        sites=sites | _pool_sites(visual),
        pool="attnpool",
        final_norm_position="before_pool",
        readout=partial(_readout, visual),
    )


def _pool_sites(visual: Any) -> dict[str, Entry]:
    """`pool_out` is what the first query gathered; `pooled` is it after its norm, what P multiplies."""
    pool = visual.attn_pool
    row: dict[str, Any] = {"layout": "vector", "read": first_query, "write": put_first_query}
    # The first element of what the tower returns beside its tokens, or all it returns.
    pick = 0 if visual.output_tokens else None
    return {
        "lnf_in": Native(pool.ln_k, "input"),
        **norm_sites("lnf", "lnf_in", pool.ln_k.eps),
        "lnf_out": Native(pool.ln_k),
        **query_pool_sites(QueryPool(lambda: torch_pool_weights(pool.attn, pool.ln_q(pool.query)[0])), "lnf_out"),
        "pool_out": Native(pool.attn, pick=0, **row),
        "pooled": Native(visual.ln_post, **row),
        "embedding": Native(visual, layout="vector", pick=pick),
    }


def _readout(visual: Any) -> Readout:
    """The norm before the pool and P; a query pools, so there is no fixed row."""
    return Readout(norm_numbers(visual.attn_pool.ln_k), None, "before_pool", visual.proj)
