"""timm's vision transformers (`blocks` of norm1, attn, norm2, mlp): ViT, DINOv2, DINOv3, EVA, SigLIP, PE, and their CLIP towers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from miclip_core.zoo.activations import activation_kind
from miclip_core.zoo.attention import attention_sites, norm_numbers, norm_sites, row_site
from miclip_core.zoo.pooling import first_query, pooling_row, put_first_query, query_pool_sites
from miclip_core.zoo.sitemap import Block, BlockWeights, Entry, Family, Native, Readout
from miclip_core.zoo.timm_attention import TimmAttention, is_gated, pool_math, projections
from miclip_core.zoo.timm_head import input_hw, output_sites, plain_output, projection, trunk_of
from schemas.errors import TokenOrderUnknown, UnsupportedBlock
from schemas.models import ActKind, Pool

_TRUNK = ("blocks", "patch_embed", "norm_pre", "norm", "fc_norm", "head", "attn_pool", "num_prefix_tokens")
_BLOCK = ("norm1", "attn.q_norm", "attn.norm", "attn.proj", "drop_path1", "norm2", "mlp.act", "mlp.fc2", "drop_path2")
_POOLS: dict[str, Pool] = {"token": "tok", "avg": "avg", "map": "map", "max": "none", "avgmax": "none", "prr": "none"}


def matches(visual: nn.Module) -> bool:
    """A trunk of standard blocks that pools to one vector; parallel, differential and relative-position blocks are not."""
    trunk = trunk_of(visual)
    if not all(hasattr(trunk, name) for name in _TRUNK) or hasattr(trunk, "head_dist") or not plain_output(visual):
        return False
    return trunk.global_pool in _POOLS and all(_standard(block) for block in trunk.blocks)


def _standard(block: nn.Module) -> bool:
    return all(_has(block, path) for path in _BLOCK) and not hasattr(block.attn, "lambda_init")


def _has(module: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True


def describe(visual: Any) -> Family:
    """The site map of one model or tower.

    Raises:
        TokenOrderUnknown: patches are dropped, because the model is in training mode.
    """
    trunk = trunk_of(visual)
    _refuse_dropped_patches(trunk)
    first = trunk.blocks[0]
    pool = _POOLS[trunk.global_pool]
    grid, hw = tuple(trunk.patch_embed.grid_size), input_hw(visual)
    _, position = _final_norm(trunk)
    return Family(
        name="timm_vit",
        visual=visual,
        sites=_sites(visual, trunk, pool),
        forward=visual,
        n_blocks=len(trunk.blocks),
        width=trunk.embed_dim,
        grid=grid,
        input_hw=hw,
        norm_eps=first.norm1.eps,
        act_kind=_act_kind(first.mlp),
        pool=pool,
        final_norm_position=position,
        n_prefix=trunk.num_prefix_tokens,
        has_cls=trunk.cls_token is not None,
        n_heads=first.attn.num_heads,
        head_dim=first.attn.proj.in_features // first.attn.num_heads,
        mlp_width=first.mlp.fc2.in_features,
        patch=hw[0] // grid[0],
        has_ln_pre=not isinstance(trunk.norm_pre, nn.Identity),
        has_layerscale=_layer_scale(first, 1) is not None,
        has_inner_attn_norm=not isinstance(first.attn.norm, nn.Identity),
        blocks=tuple(_block(trunk, layer) for layer in range(len(trunk.blocks))),
        sums={f"resid_mid.{layer}": (f"resid_pre.{layer}", f"attn_out.{layer}") for layer in range(len(trunk.blocks))},
        weights=partial(block_weights, trunk),
        readout=partial(readout, visual),
    )


def _refuse_dropped_patches(trunk: Any) -> None:
    drop: Any = getattr(trunk, "patch_drop", None)
    if getattr(drop, "training", False) and getattr(drop, "prob", 0) > 0:
        raise TokenOrderUnknown(
            f"{type(trunk).__name__} drops {drop.prob:.0%} of its patches in training mode, so positions mean nothing; "
            "call eval() first"
        )


# ---------------------------------------------------------------- blocks


def _is_pre_norm(block: Any) -> bool:
    """Whether norms come before attention and MLP; blocks that normalise the branches' outputs have no layer scale."""
    return hasattr(block, "ls1") or hasattr(block, "gamma_1")


def _attention_input(trunk: Any, layer: int) -> str:
    return f"ln1_out.{layer}" if _is_pre_norm(trunk.blocks[layer]) else f"resid_pre.{layer}"


def _math(trunk: Any, layer: int) -> TimmAttention:
    block = trunk.blocks[layer]
    return TimmAttention(
        partial(_all_weights, trunk, layer),
        attention=block.attn,
        rope=partial(_rope, trunk, layer),
        heads_add_up=_is_pre_norm(block),
    )


def _block(trunk: Any, layer: int) -> Block:
    """The gate of a gated attention reads what an edit of z does not know, so such a block has no math of its own."""
    block = trunk.blocks[layer]
    math = None if is_gated(block.attn) else _math(trunk, layer)
    return Block(Native(block), Native(block.attn), _attention_input(trunk, layer), math)


def _rope(trunk: Any, layer: int) -> Tensor | None:
    """The rotary code of the patches that block `layer` receives, as the trunk makes it in each forward."""
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return None
    if trunk.dynamic_img_size or not hasattr(rope, "feat_shape"):
        code = rope.get_embed(shape=list(trunk.patch_embed.grid_size))
    else:
        code = rope.get_embed()
    return code[layer] if getattr(trunk, "rope_mixed", False) else code


def _block_sites(trunk: Any, layer: int) -> dict[str, Entry]:
    block = trunk.blocks[layer]
    pre = _is_pre_norm(block)
    # The residual between two blocks has one home, so that an edit of either name reaches both.
    sites: dict[str, Entry] = {
        f"resid_pre.{layer}": Native(block, "input") if layer == 0 else Native(trunk.blocks[layer - 1])
    }
    if pre:
        sites |= _norm_sites("ln1", f"resid_pre.{layer}", block.norm1, layer)
    sites |= attention_sites(layer, _math(trunk, layer), _attention_input(trunk, layer))
    sites[f"attn_out.{layer}"] = Native(block.drop_path1)
    sites[f"resid_mid.{layer}"] = Native(block.norm2 if pre else block.mlp, "input")
    if pre:
        sites |= _norm_sites("ln2", f"resid_mid.{layer}", block.norm2, layer)
    return sites | {
        f"mlp_pre.{layer}": Native(block.mlp.act, "input"),
        f"mlp_act.{layer}": Native(block.mlp.fc2, "input"),
        f"mlp_out.{layer}": Native(block.drop_path2),
        f"resid_post.{layer}": Native(block),
    }


def _norm_sites(name: str, source: str, norm: Any, layer: int) -> dict[str, Entry]:
    numbers = norm_numbers(norm)
    stats = norm_sites(name, source, numbers.eps, layer, numbers.subtract_mean)
    return {**stats, f"{name}_out.{layer}": Native(norm)}


def _act_kind(mlp: Any) -> ActKind:
    kind = activation_kind(mlp.act)
    return "silu_gate" if kind == "silu" and _is_gated_mlp(mlp) else kind


def _is_gated_mlp(mlp: Any) -> bool:
    return hasattr(mlp, "fc1_g") or mlp.fc1.out_features != mlp.fc2.in_features


# ---------------------------------------------------------------- from the last residual to the output


def _final_norm(trunk: Any) -> tuple[Any, Any]:
    """The final norm and where it is: over all tokens, or over the pooled vector."""
    if not isinstance(trunk.norm, nn.Identity):
        return trunk.norm, "before_pool"
    if not isinstance(trunk.fc_norm, nn.Identity):
        return trunk.fc_norm, "after_pool"
    return None, "none"


def _sites(visual: Any, trunk: Any, pool: Pool) -> dict[str, Entry]:
    sites: dict[str, Entry] = {"embed": Native(trunk.norm_pre, "input")}
    for layer in range(len(trunk.blocks)):
        sites |= _block_sites(trunk, layer)
    norm, position = _final_norm(trunk)
    pooling = _pool_sites(trunk) if pool == "map" else {}
    if position == "before_pool":
        sites |= _final_sites(norm, "tokens") | pooling
    elif position == "after_pool":
        sites |= pooling | _final_sites(norm, "vector")
    else:
        sites |= pooling
    if pool in ("tok", "avg"):
        std = "lnf_std" if position == "before_pool" else None
        rho = partial(pooling_row, pool, prefix=_excluded(trunk))
        sites |= {f"pattern_row.{layer}": row_site(layer, rho, std) for layer in range(len(trunk.blocks))}
    return sites | output_sites(visual, trunk.head)


def _final_sites(norm: Any, layout: Any) -> dict[str, Entry]:
    numbers = norm_numbers(norm)
    stats = norm_sites("lnf", "lnf_in", numbers.eps, None, numbers.subtract_mean, layout)
    return {"lnf_in": Native(norm, "input", layout), **stats, "lnf_out": Native(norm, layout=layout)}


def _excluded(trunk: Any) -> int:
    """How many prefix tokens a mean leaves out."""
    return 0 if getattr(trunk, "pool_include_prefix", False) else trunk.num_prefix_tokens


def _pool_sites(trunk: Any) -> dict[str, Entry]:
    """Attention pooling: its tokens, its one query's weights and values, their sum, and the MLP added to it.

    EVA's trunk gives the pool all its tokens, the plain one leaves the prefix out.
    """
    pool = trunk.attn_pool
    if pool.latent_len != 1:
        return {}  # several queries: none of them alone is the pooled vector
    all_tokens = getattr(trunk, "pool_include_prefix", hasattr(trunk.blocks[0], "gamma_1"))
    prefix = None if all_tokens or trunk.num_prefix_tokens == 0 else 0
    row: dict[str, Any] = {"layout": "vector", "read": first_query, "write": put_first_query}
    sites: dict[str, Entry] = {"pool_in": Native(pool, "input", prefix=prefix)}
    sites |= query_pool_sites(pool_math(pool), "pool_in", prefix)
    sites["pool_out"] = Native(pool.proj_drop, **row)
    if pool.mlp is not None:
        sites["map_mlp"] = Native(pool.mlp, **row)
    return sites


def readout(visual: Any) -> Readout:
    """Final norm, pooling row and projection; rho is None where a query or a maximum pools.

    Raises:
        UnsupportedBlock: a second norm follows the pooling, or an MLP makes the embedding.
    """
    trunk = trunk_of(visual)
    norm, position = _final_norm(trunk)
    if position == "before_pool" and not isinstance(trunk.fc_norm, nn.Identity):
        raise UnsupportedBlock("one norm precedes and another follows the pooling, so there is no linear readout")
    pool = _POOLS[trunk.global_pool]
    tokens = trunk.num_prefix_tokens + trunk.patch_embed.grid_size[0] * trunk.patch_embed.grid_size[1]
    P, bias = projection(visual, trunk.head)
    return Readout(
        norm=None if norm is None else norm_numbers(norm),
        rho=pooling_row(pool, tokens, _excluded(trunk)) if pool in ("tok", "avg") else None,
        position=position,
        projection=P,
        bias=bias,
    )


# ---------------------------------------------------------------- weights


def block_weights(trunk: Any, layer: int) -> BlockWeights:
    """Weights of one block by head; keys and values that several heads share are repeated for each.

    Raises:
        UnsupportedBlock: norms follow the branches, so the norms before them that the weights name do not exist.
    """
    if not _is_pre_norm(trunk.blocks[layer]):
        raise UnsupportedBlock(f"block {layer} normalises the outputs of its branches; heads and neurons do not add up")
    return _all_weights(trunk, layer)


def _all_weights(trunk: Any, layer: int) -> BlockWeights:
    block = trunk.blocks[layer]
    W_Q, W_K, W_V, b_Q, b_K, b_V = projections(block.attn)
    proj, fc2 = block.attn.proj, block.mlp.fc2
    return BlockWeights(
        W_Q=W_Q,
        W_K=W_K,
        W_V=W_V,
        b_Q=b_Q,
        b_K=b_K,
        b_V=b_V,
        W_O=proj.weight.unflatten(1, (block.attn.num_heads, -1)).movedim(1, 0),
        b_O=_bias(proj),
        W_out=fc2.weight,
        b_out=_bias(fc2),
        ls1=_scale(block, 1),
        ls2=_scale(block, 2),
        ln1=norm_numbers(block.norm1),
        ln2=norm_numbers(block.norm2),
    )


def _bias(linear: Any) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias


def _layer_scale(block: Any, number: int) -> Tensor | None:
    own = getattr(block, f"gamma_{number}", None)
    return own if own is not None else getattr(getattr(block, f"ls{number}", None), "gamma", None)


def _scale(block: Any, number: int) -> Tensor:
    scale = _layer_scale(block, number)
    return torch.ones_like(block.norm1.weight) if scale is None else scale
