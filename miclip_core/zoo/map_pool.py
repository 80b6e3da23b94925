"""SigLIP's pooling head in transformers: a learned query attends over the final tokens, and an MLP is added to what it gathers."""

from __future__ import annotations

from typing import Any

from miclip_core.zoo.pooling import QueryPool, first_query, query_pool_sites, torch_pool_weights
from miclip_core.zoo.sitemap import Entry, Native


def map_pool_sites(head: Any, source: str = "lnf_out") -> dict[str, Entry]:
    """`pool_v`, `pool_pattern`, `pool_out` (before the MLP), `map_mlp` and `pooled` of a head with torch attention.

    `pool_out` = sum over heads and tokens of W_O,h (pattern_h,i v_h,i) + b_O, exactly; `pooled` = pool_out + map_mlp.
    """
    pool = QueryPool(lambda: torch_pool_weights(head.attention, head.probe[0, 0]))
    row: dict[str, Any] = {"layout": "vector", "read": first_query, "write": lambda old_B1D, new_BD: new_BD[:, None]}
    return {
        **query_pool_sites(pool, source),
        "pool_out": Native(head.attention, pick=0, **row),
        "map_mlp": Native(head.mlp, **row),
        "pooled": Native(head, layout="vector"),
    }
