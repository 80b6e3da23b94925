"""The native CLIP vision transformer (`visual` with `transformer.resblocks`), as OpenAI and open_clip write it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from miclip_core.zoo.activations import activation_kind
from miclip_core.zoo.attention import (
    PlainAttention,
    attention_sites,
    in_own_dtype,
    norm_numbers,
    norm_sites,
    row_site,
)
from miclip_core.zoo.pooling import pooling_row
from miclip_core.zoo.sitemap import AttentionMath, Block, BlockWeights, Derived, Entry, Family, Native, Readout
from schemas.errors import UnsupportedBlock
from schemas.models import Pool


def matches(visual: nn.Module) -> bool:
    """A tower with CLIP's blocks, class embedding and no attentional pooling."""
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    return blocks is not None and hasattr(visual, "class_embedding") and getattr(visual, "attn_pool", None) is None


def describe(visual: Any) -> Family:
    """The site map of one tower; names and layout come from its modules, not from library versions.

    Patch dropout, if the tower has it, only acts in training mode, which a forward refuses.
    """
    blocks, grid = visual.transformer.resblocks, tuple(visual.grid_size)
    attention = blocks[0].attn
    width = visual.class_embedding.shape[0]
    per_image: Pool = getattr(visual, "pool_type", "tok")
    after_pool = bool(getattr(visual, "final_ln_after_pool", False))
    weights = partial(block_weights, visual)
    return Family(
        name="clip_vit",
        visual=visual,
        sites=_sites(visual, per_image, after_pool),
        forward=visual,
        n_blocks=len(blocks),
        width=width,
        grid=grid,
        input_hw=(grid[0] * visual.conv1.kernel_size[0], grid[1] * visual.conv1.kernel_size[1]),
        norm_eps=blocks[0].ln_1.eps,
        act_kind=activation_kind(blocks[0].mlp.gelu),
        pool=per_image,
        final_norm_position="after_pool" if after_pool else "before_pool",
        n_prefix=1,
        has_cls=True,
        n_heads=attention.num_heads,
        head_dim=width // attention.num_heads,
        mlp_width=blocks[0].mlp.c_fc.out_features,
        patch=visual.conv1.kernel_size[0],
        has_ln_pre=not isinstance(visual.ln_pre, nn.Identity),
        has_layerscale=not isinstance(getattr(blocks[0], "ls_1", nn.Identity()), nn.Identity),
        has_inner_attn_norm=not isinstance(getattr(attention, "ln_inner", nn.Identity()), nn.Identity),
        blocks=tuple(
            Block(
                _block_output(visual, layer), _attention_output(visual, layer), f"ln1_out.{layer}", _math(visual, layer)
            )
            for layer in range(len(blocks))
        ),
        sums={f"resid_mid.{layer}": (f"resid_pre.{layer}", f"attn_out.{layer}") for layer in range(len(blocks))},
        weights=weights,
        readout=partial(readout, visual, per_image, after_pool),
    )


# ---------------------------------------------------------------- where sites are


def _sequence_first(visual: Any) -> bool:
    """Older releases, and OpenAI's own code, run [T, B, D] inside the transformer; a missing flag means that."""
    transformer = visual.transformer
    flag = getattr(transformer, "batch_first", None)
    return not (getattr(transformer.resblocks[0].attn, "batch_first", False) if flag is None else flag)


def _native(visual: Any, module: nn.Module, io: str = "output", **more: Any) -> Native:
    """A tensor inside the transformer, batch first whatever the tower does."""
    if not _sequence_first(visual):
        return Native(module, io, **more)  # type: ignore[arg-type]
    swap = partial(torch.transpose, dim0=0, dim1=1)
    return Native(module, io, read=swap, write=lambda old, new: swap(new), **more)  # type: ignore[arg-type]


def _block_output(visual: Any, layer: int) -> Native:
    return _native(visual, visual.transformer.resblocks[layer])


def _attention_output(visual: Any, layer: int) -> Native:
    attention = visual.transformer.resblocks[layer].attn
    return _native(visual, attention, pick=0 if isinstance(attention, nn.MultiheadAttention) else None)


def _sites(visual: Any, pool: str, after_pool: bool) -> dict[str, Entry]:
    sites: dict[str, Entry] = {"embed": Native(visual.ln_pre, "input")}
    last = len(visual.transformer.resblocks) - 1
    for layer in range(last + 1):
        sites |= _block_sites(visual, layer)
    sites |= _final_sites(visual, pool, after_pool)
    if pool in ("tok", "avg"):
        std = None if after_pool else "lnf_std"
        rows = {
            f"pattern_row.{layer}": row_site(layer, partial(pooling_row, pool, prefix=1), std)
            for layer in range(last + 1)
        }
        sites |= rows
    return sites | {"embedding": Native(visual, layout="vector")}


def _block_sites(visual: Any, layer: int) -> dict[str, Entry]:
    block = visual.transformer.resblocks[layer]
    native = partial(_native, visual)
    # The residual between two blocks has one home, so that an edit of either name reaches both.
    before = native(block, "input") if layer == 0 else _block_output(visual, layer - 1)
    sites: dict[str, Entry] = {f"resid_pre.{layer}": before}
    sites |= norm_sites("ln1", f"resid_pre.{layer}", block.ln_1.eps, layer)
    sites |= {f"ln1_out.{layer}": native(block.ln_1)}
    math = _math(visual, layer)
    sites |= attention_sites(layer, math, f"ln1_out.{layer}")
    attention_branch = getattr(block, "ls_1", None)
    sites[f"attn_out.{layer}"] = (
        _attention_output(visual, layer) if attention_branch is None else native(attention_branch)
    )
    sites[f"resid_mid.{layer}"] = native(block.ln_2, "input")
    sites |= norm_sites("ln2", f"resid_mid.{layer}", block.ln_2.eps, layer)
    sites |= {
        f"ln2_out.{layer}": native(block.ln_2),
        f"mlp_pre.{layer}": native(block.mlp.gelu, "input"),
        f"mlp_act.{layer}": native(block.mlp.c_proj, "input"),
        f"mlp_out.{layer}": native(block.ls_2 if hasattr(block, "ls_2") else block.mlp),
        f"resid_post.{layer}": _block_output(visual, layer),
    }
    return sites


def _final_sites(visual: Any, pool: str, after_pool: bool) -> dict[str, Entry]:
    """The final norm sees all tokens, or (after pooling) one vector; `pooled` is what P multiplies."""
    norm = visual.ln_post
    if after_pool:
        after = Native(norm, layout="vector")
        entries: dict[str, Entry] = {"lnf_in": Native(norm, "input", "vector")}
        entries |= norm_sites("lnf", "lnf_in", norm.eps, layout="vector")
        return entries | {"lnf_out": after, "pooled": after}
    stats = norm_sites("lnf", "lnf_in", norm.eps)
    sites: dict[str, Entry] = {"lnf_in": Native(norm, "input"), **stats, "lnf_out": Native(norm)}
    if pool == "tok":
        sites["pooled"] = Native(norm, layout="vector", read=lambda x: x[:, 0], write=_put_first)
    elif pool == "avg":
        sites["pooled"] = Derived(("lnf_out",), lambda x, rows: x[:, 1:].mean(1), "vector")
    return sites


def _put_first(whole_BTD: Tensor, first_BD: Tensor) -> Tensor:
    return torch.cat([first_BD[:, None], whole_BTD[:, 1:]], 1)


# ---------------------------------------------------------------- weights


def block_weights(visual: Any, layer: int) -> BlockWeights:
    """Weights of block layer by head; views of the model's own parameters where the layout allows."""
    block = visual.transformer.resblocks[layer]
    attention, heads = block.attn, block.attn.num_heads
    width = attention.in_proj_weight.shape[1]
    W_Q, W_K, W_V = attention.in_proj_weight.unflatten(0, (3, heads, width // heads))
    bias = attention.in_proj_bias
    bias = torch.zeros_like(attention.in_proj_weight[:, 0]) if bias is None else bias
    b_Q, b_K, b_V = bias.unflatten(0, (3, heads, width // heads))
    return BlockWeights(
        W_Q=W_Q,
        W_K=W_K,
        W_V=W_V,
        b_Q=b_Q,
        b_K=b_K,
        b_V=b_V,
        W_O=attention.out_proj.weight.unflatten(1, (heads, width // heads)).movedim(1, 0),
        b_O=attention.out_proj.bias,
        W_out=block.mlp.c_proj.weight,
        b_out=block.mlp.c_proj.bias,
        ls1=_scale(block, "ls_1", width),
        ls2=_scale(block, "ls_2", width),
        ln1=norm_numbers(block.ln_1),
        ln2=norm_numbers(block.ln_2),
    )


def _scale(block: Any, name: str, width: int) -> Tensor:
    scale = getattr(getattr(block, name, None), "gamma", None)
    return torch.ones(width, device=block.ln_1.weight.device, dtype=block.ln_1.weight.dtype) if scale is None else scale


def readout(visual: Any, pool: str, after_pool: bool) -> Readout:
    """Final LayerNorm, pooling row and P [D, E], applied as x @ P."""
    tokens = visual.positional_embedding.shape[0]
    return Readout(
        norm=norm_numbers(visual.ln_post),
        rho=pooling_row(pool, tokens, prefix=1) if pool in ("tok", "avg") else None,
        position="after_pool" if after_pool else "before_pool",
        projection=visual.proj,
    )


# ---------------------------------------------------------------- attention


def _math(visual: Any, layer: int) -> AttentionMath:
    attention = visual.transformer.resblocks[layer].attn
    if isinstance(attention, nn.MultiheadAttention):
        return PlainAttention(partial(block_weights, visual, layer))
    weights = partial(block_weights, visual, layer)
    return CustomAttention(weights, attention=attention, after=visual.transformer.resblocks[layer].ln_attn)


@dataclass(eq=False, kw_only=True)
class CustomAttention(PlainAttention):
    """open_clip's own attention: optional qk-norm, cosine logits, a scale per head, a norm before the output matrix.

    attention: the module. after: the norm that follows it (Identity if none).
    """

    attention: Any
    after: nn.Module

    def qkv(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().qkv(x_BTD)
        if self.attention.logit_scale is not None:
            return nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1), v
        return in_own_dtype(self.attention.ln_q, q), in_own_dtype(self.attention.ln_k, k), v

    def pattern(self, q_BHTX: Tensor, k_BHTX: Tensor) -> Tensor:
        if self.attention.logit_scale is None:
            return super().pattern(q_BHTX, k_BHTX)
        scale = self.attention.logit_scale.clamp(max=self.attention.logit_scale_max).exp().to(q_BHTX)
        return (q_BHTX @ k_BHTX.transpose(-1, -2) * scale).softmax(-1)

    def output(self, z_BTHX: Tensor) -> Tensor:
        return self.attention.out_proj(self._concatenated(z_BTHX).to(self.attention.out_proj.weight)).to(z_BTHX)

    def head_result(self, z_BTHX: Tensor) -> Tensor:
        if not (isinstance(self.attention.ln_inner, nn.Identity) and isinstance(self.after, nn.Identity)):
            raise UnsupportedBlock(
                "a norm mixes the heads before or after the output matrix; read z and attn_out instead"
            )
        return super().head_result(self._scaled(z_BTHX))

    def _scaled(self, z_BTHX: Tensor) -> Tensor:
        scale = self.attention.head_scale
        return z_BTHX if scale is None else z_BTHX * scale.to(z_BTHX).view(1, 1, -1, 1)

    def _concatenated(self, z_BTHX: Tensor) -> Tensor:
        return in_own_dtype(self.attention.ln_inner, self._scaled(z_BTHX).flatten(2))
