"""One block of the transformers library's vision transformers: its parts by name, its sites and its weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from miclip_core.zoo.activations import activation_kind
from miclip_core.zoo.attention import (
    PlainAttention,
    attention_sites,
    in_own_dtype,
    is_rms,
    norm_eps,
    norm_numbers,
    norm_sites,
)
from miclip_core.zoo.sitemap import BlockWeights, Entry, Native
from schemas.errors import UnsupportedBlock
from schemas.models import ActKind

# One part has another name in every class; exactly one of the names is there.
NORM1 = ("layer_norm1", "layernorm_before", "norm1")
NORM2 = ("layer_norm2", "layernorm_after", "norm2")
ATTENTION = ("self_attn", "attention")
_OUTPUT = ("out_proj", "o_proj", "projection_layer")
HEADS = ("num_heads", "num_attention_heads")


def part(module: Any, names: tuple[str, ...]) -> Any:
    """The part that has one of these names, None if none has."""
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def down(mlp: Any) -> Any:
    """The matrix that the neurons are multiplied by."""
    return mlp.down_proj if hasattr(mlp, "down_proj") else mlp.fc2


def act_kind(mlp: Any) -> ActKind:
    """The nonlinearity of an MLP.

    Raises:
        UnsupportedBlock: a gated one whose gate is no SiLU.
    """
    if not hasattr(mlp, "gate_proj"):
        return activation_kind(mlp.activation_fn)
    kind = activation_kind(mlp.act_fn)
    if kind != "silu":
        raise UnsupportedBlock(f"a gated MLP with {kind} has no name yet; known is silu")
    return "silu_gate"


# ---------------------------------------------------------------- sites


def block_sites(blocks: Any, layer: int) -> dict[str, Entry]:
    """The sites of one block among all blocks, in forward order."""
    block = blocks[layer]
    norm1, norm2, mlp = part(block, NORM1), part(block, NORM2), block.mlp
    # The residual between two blocks has one home, so that an edit of either name reaches both.
    sites: dict[str, Entry] = {
        f"resid_pre.{layer}": Native(block, "input") if layer == 0 else Native(blocks[layer - 1])
    }
    sites |= norm_sites("ln1", f"resid_pre.{layer}", norm_eps(norm1), layer, not is_rms(norm1))
    sites[f"ln1_out.{layer}"] = Native(norm1)
    sites |= attention_sites(layer, block_math(block), f"ln1_out.{layer}")
    sites[f"attn_out.{layer}"] = _branch(block, part(block, ATTENTION), 0, "1")
    sites[f"resid_mid.{layer}"] = Native(norm2, "input")
    sites |= norm_sites("ln2", f"resid_mid.{layer}", norm_eps(norm2), layer, not is_rms(norm2))
    return sites | {
        f"ln2_out.{layer}": Native(norm2),
        f"mlp_pre.{layer}": Native(mlp.gate_proj if hasattr(mlp, "gate_proj") else mlp.fc1),
        f"mlp_act.{layer}": Native(down(mlp), "input"),
        f"mlp_out.{layer}": _branch(block, mlp, None, "2"),
        f"resid_post.{layer}": Native(block),
    }


def _branch(block: Any, module: nn.Module, pick: int | None, number: str) -> Native:
    """What a branch adds to the residual: what its module returns, after LayerScale where there is one.

    InternVL's block multiplies by a parameter itself, so that no module returns the product.
    """
    if hasattr(block, f"layer_scale{number}"):
        return Native(getattr(block, f"layer_scale{number}"))
    if not hasattr(block, f"lambda_{number}"):
        return Native(module, pick=pick)

    def read(raw_BTD: Tensor) -> Tensor:
        return _scale(block, number) * raw_BTD

    def write(old_BTD: Tensor, new_BTD: Tensor) -> Tensor:
        scale_D = _scale(block, number)
        return torch.where(scale_D == 0, old_BTD, new_BTD / torch.where(scale_D == 0, 1, scale_D))

    return Native(module, pick=pick, read=read, write=write)


# ---------------------------------------------------------------- weights


def block_math(block: Any) -> PlainAttention:
    """The exact arithmetic of a block's attention."""
    attention = part(block, ATTENTION)
    norms = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
    normed = any(is_rms(norm) for norm in norms if norm is not None)
    return PlainAttention(partial(block_weights, block), partial(_norm_qk, norms) if normed else None)


def _norm_qk(norms: tuple[Any, Any], q_BHTX: Tensor, k_BHTX: Tensor) -> tuple[Tensor, Tensor]:
    """InternVL's large tower norms queries and keys over all heads together."""
    q, k = (
        in_own_dtype(norm, x_BHTX.transpose(1, 2).flatten(2)).unflatten(2, (x_BHTX.shape[1], -1)).transpose(1, 2)
        for norm, x_BHTX in zip(norms, (q_BHTX, k_BHTX), strict=True)
    )
    return q, k


def block_weights(block: Any) -> BlockWeights:
    """The weights of one block by head; views of the model's own parameters."""
    attention, mlp = part(block, ATTENTION), block.mlp
    heads, output = part(attention, HEADS), part(attention, _OUTPUT)
    split = [_by_head(linear, heads) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
    (W_Q, b_Q), (W_K, b_K), (W_V, b_V) = split
    return BlockWeights(
        W_Q=W_Q,
        W_K=W_K,
        W_V=W_V,
        b_Q=b_Q,
        b_K=b_K,
        b_V=b_V,
        W_O=output.weight.unflatten(1, (heads, -1)).movedim(1, 0),
        b_O=output.bias,
        W_out=down(mlp).weight,
        b_out=down(mlp).bias,
        ls1=_scale(block, "1"),
        ls2=_scale(block, "2"),
        ln1=norm_numbers(part(block, NORM1)),
        ln2=norm_numbers(part(block, NORM2)),
    )


def _by_head(linear: nn.Linear, heads: int) -> tuple[Tensor, Tensor]:
    """Weight [H, X, D] and bias [H, X], zero where the checkpoint has none."""
    bias = torch.zeros_like(linear.weight[:, 0]) if linear.bias is None else linear.bias
    return linear.weight.unflatten(0, (heads, -1)), bias.unflatten(0, (heads, -1))


def _scale(block: Any, number: str) -> Tensor:
    """LayerScale of the first or second branch, one where there is none."""
    if hasattr(block, f"layer_scale{number}"):
        return getattr(block, f"layer_scale{number}").lambda1
    if hasattr(block, f"lambda_{number}"):
        return getattr(block, f"lambda_{number}")
    return torch.ones_like(part(block, NORM1).weight)
