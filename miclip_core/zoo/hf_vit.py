"""The vision transformers of the transformers library: CLIP, SigLIP, ViT, MAE, DINOv2 and InternVL's, told apart by their parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from miclip_core.zoo.attention import norm_eps, norm_numbers, norm_sites, row_site
from miclip_core.zoo.hf_blocks import (
    ATTENTION,
    HEADS,
    NORM1,
    act_kind,
    block_math,
    block_sites,
    block_weights,
    down,
    part,
)
from miclip_core.zoo.pooling import (
    QueryPool,
    first_query,
    pooling_row,
    put_first_query,
    query_pool_sites,
    torch_pool_weights,
)
from miclip_core.zoo.sitemap import Block, Entry, Family, Native, Readout
from schemas.errors import TokenOrderUnknown
from schemas.models import Pool

_FINAL = ("post_layernorm", "layernorm")


def matches(visual: nn.Module) -> bool:
    """A model whose image side has embeddings and pre-norm blocks with separate query, key and value matrices."""
    tower = tower_of(visual)
    blocks = _blocks(tower)
    return hasattr(tower, "embeddings") and bool(blocks) and hasattr(part(blocks[0], ATTENTION), "q_proj")


def describe(visual: Any) -> Family:
    """The site map of one model; its input size is that of its configuration.

    Raises:
        TokenOrderUnknown: a masked autoencoder that would drop patches.
    """
    tower: Any = tower_of(visual)
    blocks = _blocks(tower)
    attention = part(blocks[0], ATTENTION)
    heads = part(attention, HEADS)
    return Family(
        name=f"hf_{visual.config.model_type.removesuffix('_model').removesuffix('_vision')}",
        visual=visual,
        sites=_sites(visual, tower),
        forward=_forward(visual, tower),
        n_blocks=len(blocks),
        width=attention.q_proj.in_features,
        grid=_grid(tower),
        input_hw=input_size(tower),
        norm_eps=norm_eps(part(blocks[0], NORM1)),
        act_kind=act_kind(blocks[0].mlp),
        pool=_pool(tower),
        final_norm_position=_final_position(tower),
        n_prefix=_n_prefix(tower),
        has_cls=_has_cls(tower),
        n_heads=heads,
        head_dim=attention.q_proj.out_features // heads,
        mlp_width=down(blocks[0].mlp).in_features,
        patch=_patch_size(tower)[0],
        has_ln_pre=hasattr(tower, "pre_layrnorm"),
        has_layerscale=any(hasattr(blocks[0], name) for name in ("layer_scale1", "lambda_1")),
        blocks=tuple(
            Block(Native(block), Native(part(block, ATTENTION), pick=0), f"ln1_out.{layer}", block_math(block))
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


def _has_cls(tower: Any) -> bool:
    return hasattr(tower.embeddings, "class_embedding") or hasattr(tower.embeddings, "cls_token")


def _pool(tower: Any) -> Pool:
    """A class token is pooled after a final norm, other towers by their head; `none` leave it to who reads the tokens."""
    if _has_cls(tower) and _final(tower) is not None:
        return "tok"
    return "map" if hasattr(tower, "head") else "none"


def _final(tower: Any) -> nn.Module | None:
    """The norm after the last block; InternVL's tower has none."""
    final = part(tower, _FINAL)
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
        sites |= block_sites(blocks, layer)
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
    final = part(tower, _FINAL)
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


def _readout(visual: Any, tower: Any) -> Callable[[], Readout] | None:
    """None where the embedding is no linear function of the final tokens: ViT's tanh pooler, DINOv2's classifier input.

    Nor is there one where nothing is pooled.
    """
    if getattr(tower, "pooler", None) is not None or _pool(tower) == "none":
        return None
    width = part(tower, _FINAL).weight.shape[0]
    if hasattr(visual, "classifier") and getattr(visual.classifier, "in_features", width) != width:
        return None

    def readout() -> Readout:
        rows, columns = _grid(tower)
        projection = visual.visual_projection.weight.T if hasattr(visual, "visual_projection") else None
        return Readout(
            norm=norm_numbers(part(tower, _FINAL)),
            rho=pooling_row("tok", _n_prefix(tower) + rows * columns, _n_prefix(tower)) if _has_cls(tower) else None,
            position="after_pool" if _norm_after_pool(tower) else "before_pool",
            projection=projection,
        )

    return readout
