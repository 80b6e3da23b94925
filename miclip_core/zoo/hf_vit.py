"""The vision transformers of the transformers library: CLIP, SigLIP, ViT, MAE, DINOv2 and InternVL's, told apart by their parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

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
    row_site,
)
from miclip_core.zoo.pooling import (
    QueryPool,
    first_query,
    pooling_row,
    put_first_query,
    query_pool_sites,
    torch_pool_weights,
)
from miclip_core.zoo.sitemap import Block, BlockWeights, Entry, Family, Native, Readout
from schemas.errors import TokenOrderUnknown, UnsupportedBlock
from schemas.models import ActKind, Pool

# One part has another name in every class; exactly one of the names is there.
_NORM1 = ("layer_norm1", "layernorm_before", "norm1")
_NORM2 = ("layer_norm2", "layernorm_after", "norm2")
_ATTENTION = ("self_attn", "attention")
_OUTPUT = ("out_proj", "o_proj", "projection_layer")
_FINAL = ("post_layernorm", "layernorm")
_HEADS = ("num_heads", "num_attention_heads")


def matches(visual: nn.Module) -> bool:
    """A model whose image side has embeddings and pre-norm blocks with separate query, key and value matrices."""
    tower = tower_of(visual)
    blocks = _blocks(tower)
    return hasattr(tower, "embeddings") and bool(blocks) and hasattr(_part(blocks[0], _ATTENTION), "q_proj")


def describe(visual: Any) -> Family:
    """The site map of one model; its input size is that of its configuration.

    Raises:
        TokenOrderUnknown: a masked autoencoder that would drop patches.
    """
    tower: Any = tower_of(visual)
    blocks = _blocks(tower)
    attention = _part(blocks[0], _ATTENTION)
    heads = _part(attention, _HEADS)
    return Family(
        name=f"hf_{visual.config.model_type.removesuffix('_model').removesuffix('_vision')}",
        visual=visual,
        sites=_sites(visual, tower),
        forward=_forward(visual, tower),
        n_blocks=len(blocks),
        width=attention.q_proj.in_features,
        grid=_grid(tower),
        input_hw=input_size(tower),
        norm_eps=norm_eps(_part(blocks[0], _NORM1)),
        act_kind=_act_kind(blocks[0].mlp),
        pool=_pool(tower),
        final_norm_position=_final_position(tower),
        n_prefix=_n_prefix(tower),
        has_cls=_has_cls(tower),
        n_heads=heads,
        head_dim=attention.q_proj.out_features // heads,
        mlp_width=_down(blocks[0].mlp).in_features,
        patch=_patch_size(tower)[0],
        has_ln_pre=hasattr(tower, "pre_layrnorm"),
        has_layerscale=any(hasattr(blocks[0], name) for name in ("layer_scale1", "lambda_1")),
        blocks=tuple(
            Block(Native(block), Native(_part(block, _ATTENTION), pick=0), f"ln1_out.{layer}", _math(block))
            for layer, block in enumerate(blocks)
        ),
        sums={f"resid_mid.{layer}": (f"resid_pre.{layer}", f"attn_out.{layer}") for layer in range(len(blocks))},
        weights=lambda layer: block_weights(blocks[layer]),
        readout=_readout(visual, tower),
    )


# ---------------------------------------------------------------- where parts are


def tower_of(visual: nn.Module) -> nn.Module:
    """The part of a library model that reads images: itself, or what its heads and text tower stand beside."""
    base = getattr(visual, "base_model", visual)
    return getattr(base, "vision_model", base)


def input_size(tower: Any) -> tuple[int, int]:
    """Height and width of the images that the configuration says."""
    size = tower.config.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _blocks(tower: nn.Module) -> Any:
    inside = getattr(tower, "encoder", tower)
    blocks = getattr(inside, "layers", None) or getattr(inside, "layer", None)
    return blocks if isinstance(blocks, nn.ModuleList) else None


def _part(module: Any, names: tuple[str, ...]) -> Any:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def _down(mlp: Any) -> Any:
    """The matrix that the neurons are multiplied by."""
    return mlp.down_proj if hasattr(mlp, "down_proj") else mlp.fc2


def _act_kind(mlp: Any) -> ActKind:
    if not hasattr(mlp, "gate_proj"):
        return activation_kind(mlp.activation_fn)
    kind = activation_kind(mlp.act_fn)
    if kind != "silu":
        raise UnsupportedBlock(f"a gated MLP with {kind} has no name yet; known is silu")
    return "silu_gate"


def _has_cls(tower: Any) -> bool:
    return hasattr(tower.embeddings, "class_embedding") or hasattr(tower.embeddings, "cls_token")


def _pool(tower: Any) -> Pool:
    """A class token is pooled after a final norm, other towers by their head; `none` leave it to who reads the tokens."""
    if _has_cls(tower) and _final(tower) is not None:
        return "tok"
    return "map" if hasattr(tower, "head") else "none"


def _final(tower: Any) -> nn.Module | None:
    """The norm after the last block; InternVL's tower has none."""
    final = _part(tower, _FINAL)
    return None if isinstance(final, nn.Identity) else final


def _final_position(tower: Any) -> Literal["before_pool", "after_pool", "none"]:
    if _final(tower) is None:
        return "none"
    return "after_pool" if _norm_after_pool(tower) else "before_pool"


def _n_prefix(tower: Any) -> int:
    registers = getattr(tower.embeddings, "register_tokens", None)
    return int(_has_cls(tower)) + (0 if registers is None else registers.shape[1])


def _masks(tower: Any) -> bool:
    """A masked autoencoder, whose embeddings come with the mask."""
    return hasattr(tower.embeddings, "random_masking")


def _norm_after_pool(tower: Any) -> bool:
    """CLIP alone normalises only the token that it pools."""
    return hasattr(tower, "pre_layrnorm")


def _patch_size(tower: Any) -> tuple[int, int]:
    embeddings = tower.embeddings
    convolution = getattr(embeddings, "patch_embedding", None)
    return (embeddings.patch_embeddings.projection if convolution is None else convolution).kernel_size


def _grid(tower: Any) -> tuple[int, int]:
    (height, width), patch = input_size(tower), _patch_size(tower)
    return height // patch[0], width // patch[1]


# ---------------------------------------------------------------- forward


def _forward(visual: Any, tower: Any) -> Callable[[Tensor], Any]:
    if _masks(tower):
        _check_mask(tower)
        return partial(_unmasked, tower)
    if hasattr(visual, "get_image_features"):
        return lambda images_BCIJ: visual.get_image_features(pixel_values=images_BCIJ)
    return lambda images_BCIJ: visual(pixel_values=images_BCIJ)


def _unmasked(tower: Any, images_BCIJ: Tensor) -> Any:
    """MAE shuffles patches by sorting noise even when it drops none; ascending noise keeps them row-major."""
    _check_mask(tower)
    patches = tower.embeddings.patch_embeddings.num_patches
    noise_BP = torch.arange(patches, device=images_BCIJ.device, dtype=torch.float32).expand(len(images_BCIJ), -1)
    return tower(pixel_values=images_BCIJ, noise=noise_BP)


def _check_mask(tower: Any) -> None:
    if tower.config.mask_ratio != 0:
        raise TokenOrderUnknown(
            f"{type(tower).__name__} drops {tower.config.mask_ratio:.0%} of the patches of every image, so positions "
            "mean nothing; set config.mask_ratio = 0"
        )


# ---------------------------------------------------------------- sites


def _sites(visual: Any, tower: Any) -> dict[str, Entry]:
    blocks, after_pool = _blocks(tower), _norm_after_pool(tower)
    embed = Native(tower.pre_layrnorm, "input") if after_pool else Native(tower.embeddings, pick=_embed_pick(tower))
    sites: dict[str, Entry] = {"embed": embed}
    for layer in range(len(blocks)):
        sites |= _block_sites(blocks, layer)
    sites |= _final_sites(tower)
    if _pool(tower) == "tok":
        std = None if after_pool else "lnf_std"
        sites |= {
            f"pattern_row.{layer}": row_site(layer, partial(pooling_row, "tok", prefix=_n_prefix(tower)), std)
            for layer in range(len(blocks))
        }
    return sites if _pool(tower) == "none" else sites | _output_sites(visual, tower)


def _embed_pick(tower: Any) -> int | None:
    return 0 if _masks(tower) else None


def _block_sites(blocks: Any, layer: int) -> dict[str, Entry]:
    block = blocks[layer]
    norm1, norm2, mlp = _part(block, _NORM1), _part(block, _NORM2), block.mlp
    # The residual between two blocks has one home, so that an edit of either name reaches both.
    sites: dict[str, Entry] = {
        f"resid_pre.{layer}": Native(block, "input") if layer == 0 else Native(blocks[layer - 1])
    }
    sites |= norm_sites("ln1", f"resid_pre.{layer}", norm_eps(norm1), layer, not is_rms(norm1))
    sites[f"ln1_out.{layer}"] = Native(norm1)
    sites |= attention_sites(layer, _math(block), f"ln1_out.{layer}")
    sites[f"attn_out.{layer}"] = _branch(block, _part(block, _ATTENTION), 0, "1")
    sites[f"resid_mid.{layer}"] = Native(norm2, "input")
    sites |= norm_sites("ln2", f"resid_mid.{layer}", norm_eps(norm2), layer, not is_rms(norm2))
    return sites | {
        f"ln2_out.{layer}": Native(norm2),
        f"mlp_pre.{layer}": Native(mlp.gate_proj if hasattr(mlp, "gate_proj") else mlp.fc1),
        f"mlp_act.{layer}": Native(_down(mlp), "input"),
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


def _final_sites(tower: Any) -> dict[str, Entry]:
    """The final norm, and `pooled`: the class token after it, or what the pooling head returns."""
    final: Any = _final(tower)
    if final is None:
        return {}
    layout: Literal["vector", "tokens"] = "vector" if _norm_after_pool(tower) else "tokens"
    sites: dict[str, Entry] = {
        "lnf_in": Native(final, "input", layout),
        **norm_sites("lnf", "lnf_in", norm_eps(final), layout=layout),
        "lnf_out": Native(final, layout=layout),
    }
    match _pool(tower):
        case "tok":
            return sites | {"pooled": _pooled_token(tower)}
        case "map":
            return sites | _head_sites(tower.head)
        case _:
            return sites


def _head_sites(head: Any) -> dict[str, Entry]:
    """SigLIP's head: a learned query attends over the tokens (`pool_out`), an MLP of that (`map_mlp`) is added: `pooled`."""
    pool = QueryPool(lambda: torch_pool_weights(head.attention, head.probe[0, 0]))
    out = Native(head.attention, layout="vector", pick=0, read=first_query, write=put_first_query)
    mlp = Native(head.mlp, layout="vector", read=first_query, write=put_first_query)
    pooled = Native(head, layout="vector")
    return {**query_pool_sites(pool, "lnf_out"), "pool_out": out, "map_mlp": mlp, "pooled": pooled}


def _pooled_token(tower: Any) -> Native:
    final = _part(tower, _FINAL)
    if _norm_after_pool(tower):
        return Native(final, layout="vector")
    return Native(final, layout="vector", read=first_query, write=put_first_query)


def _output_sites(visual: Any, tower: Any) -> dict[str, Entry]:
    """`embedding`: after the projection or pooler; what a classifier reads, whose scores are `logits`."""
    if hasattr(visual, "visual_projection"):
        return {"embedding": Native(visual.visual_projection, layout="vector")}
    if hasattr(visual, "classifier"):
        return {
            "embedding": Native(visual.classifier, "input", "vector"),
            "logits": Native(visual.classifier, layout="vector"),
        }
    if getattr(tower, "pooler", None) is not None:
        return {"embedding": Native(tower.pooler, layout="vector")}
    return {"embedding": _pooled_token(tower) if _has_cls(tower) else Native(tower.head, layout="vector")}


# ---------------------------------------------------------------- weights


def _math(block: Any) -> PlainAttention:
    attention = _part(block, _ATTENTION)
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
    attention, mlp = _part(block, _ATTENTION), block.mlp
    heads, output, down = _part(attention, _HEADS), _part(attention, _OUTPUT), _down(mlp)
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
        W_out=down.weight,
        b_out=down.bias,
        ls1=_scale(block, "1"),
        ls2=_scale(block, "2"),
        ln1=norm_numbers(_part(block, _NORM1)),
        ln2=norm_numbers(_part(block, _NORM2)),
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
    return torch.ones_like(_part(block, _NORM1).weight)


def _readout(visual: Any, tower: Any) -> Callable[[], Readout] | None:
    """None where the embedding is no linear function of the final tokens: ViT's tanh pooler, DINOv2's classifier input.

    Nor is there one where nothing is pooled.
    """
    if getattr(tower, "pooler", None) is not None or _pool(tower) == "none":
        return None
    width = _part(tower, _FINAL).weight.shape[0]
    if hasattr(visual, "classifier") and getattr(visual.classifier, "in_features", width) != width:
        return None

    def readout() -> Readout:
        rows, columns = _grid(tower)
        projection = visual.visual_projection.weight.T if hasattr(visual, "visual_projection") else None
        return Readout(
            norm=norm_numbers(_part(tower, _FINAL)),
            rho=pooling_row("tok", _n_prefix(tower) + rows * columns, _n_prefix(tower)) if _has_cls(tower) else None,
            position="after_pool" if _norm_after_pool(tower) else "before_pool",
            projection=projection,
        )

    return readout
