"""timm's ConvNeXt: depthwise convolution, norm and MLP per block, whose neurons may be stored channels-last."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from miclip_core.zoo.activations import activation_kind
from miclip_core.zoo.attention import norm_numbers, norm_sites
from miclip_core.zoo.sitemap import Entry, Family, Native, Readout
from miclip_core.zoo.timm_head import input_hw, output_sites, plain_output, projection, trunk_of
from schemas.errors import UnsupportedBlock

_BLOCK = ("conv_dw", "norm", "mlp", "use_conv_mlp", "drop_path")


def matches(visual: nn.Module) -> bool:
    """A trunk of stages whose blocks hold a depthwise convolution and an MLP, and a head that pools."""
    trunk: Any = trunk_of(visual)
    stages, head = getattr(trunk, "stages", ()), getattr(trunk, "head", None)
    if not all(hasattr(trunk, name) for name in ("stem", "norm_pre")) or not isinstance(stages, nn.Sequential):
        return False
    if not hasattr(head, "fc") or not getattr(getattr(head, "global_pool", None), "pool_type", ""):
        return False
    blocks = [block for stage in stages for block in getattr(stage, "blocks", [nn.Identity()])]
    return plain_output(visual) and all(all(hasattr(block, name) for name in _BLOCK) for block in blocks)


def describe(visual: Any) -> Family:
    """The site map of one model or tower; stages count from 1, `n_blocks` residual blocks, `width` is the last stage's."""
    trunk = trunk_of(visual)
    hw, reduction = input_hw(visual), trunk.feature_info[-1]["reduction"]
    grid = (hw[0] // reduction, hw[1] // reduction)
    first = trunk.stages[0].blocks[0]
    average = trunk.head.global_pool.pool_type == "avg"
    return Family(
        name="timm_convnext",
        visual=visual,
        sites=_sites(visual, trunk),
        forward=visual,
        n_blocks=sum(len(stage.blocks) for stage in trunk.stages),
        width=trunk.num_features,
        grid=grid,
        input_hw=hw,
        norm_eps=first.norm.eps,
        act_kind=activation_kind(first.mlp.act),
        pool="avg" if average else "none",
        final_norm_position="after_pool" if _norm_after_pool(trunk) else "before_pool",
        has_layerscale=first.gamma is not None,
        steps=tuple(_steps(trunk)),
        readout=partial(_readout, visual, grid) if average and _norm_after_pool(trunk) else None,
    )


def _sites(visual: Any, trunk: Any) -> dict[str, Entry]:
    sites: dict[str, Entry] = {"stem": Native(trunk.stem, layout="map")}
    for s, stage in enumerate(trunk.stages, 1):
        for b, block in enumerate(stage.blocks):
            sites |= _block_sites(block, f"conv.{s}.{b}")
        sites[f"stage.{s}"] = Native(stage, layout="map")
    if _norm_after_pool(trunk):
        sites |= _final_sites(trunk.head.norm)
    return sites | output_sites(visual, trunk.head.fc)


def _steps(trunk: Any) -> Iterator[tuple[nn.Module, str | None]]:
    """A stage makes its map smaller before its blocks."""
    yield trunk.stem, "stem"
    for s, stage in enumerate(trunk.stages, 1):
        yield stage.downsample, None
        for b, block in enumerate(stage.blocks):
            yield block, f"conv.{s}.{b}.out"


def _block_sites(block: Any, name: str) -> dict[str, Entry]:
    """`act1`: the neurons, exactly what the second MLP matrix multiplies; `out` adds their sum to the block's input."""
    where: dict[str, Any] = {"layout": "map"}
    if not block.use_conv_mlp:
        where |= {"read": _channels_first, "write": lambda old, new: new.movedim(1, -1)}
    return {
        f"{name}.dw": Native(block.conv_dw, layout="map"),
        f"{name}.act1": Native(block.mlp.fc2, "input", **where),
        f"{name}.branch": Native(block.drop_path, layout="map"),
        f"{name}.out": Native(block, layout="map"),
    }


def _channels_first(x_BIJC: Tensor) -> Tensor:
    return x_BIJC.movedim(-1, 1)


# ---------------------------------------------------------------- from the last stage to the output


def _norm_after_pool(trunk: Any) -> bool:
    return isinstance(trunk.norm_pre, nn.Identity) and not isinstance(getattr(trunk.head, "norm", None), nn.Identity)


def _final_sites(norm: Any) -> dict[str, Entry]:
    """The norm of the pooled map, a vector with two empty axes."""
    where: dict[str, Any] = {"read": partial(torch.flatten, start_dim=1), "write": lambda old, new: new.view_as(old)}
    numbers = norm_numbers(norm)
    return {
        "lnf_in": Native(norm, "input", "vector", **where),
        **norm_sites("lnf", "lnf_in", numbers.eps, None, numbers.subtract_mean, "vector"),
        "lnf_out": Native(norm, layout="vector", **where),
    }


def _readout(visual: Any, grid: tuple[int, int]) -> Readout:
    """Mean over positions, norm, projection; UnsupportedBlock where an MLP stands between."""
    trunk = trunk_of(visual)
    if not isinstance(getattr(trunk.head, "pre_logits", nn.Identity()), nn.Identity):
        raise UnsupportedBlock("the head has a hidden layer after the norm, so there is no linear readout")
    P, bias = projection(visual, trunk.head.fc)
    positions = grid[0] * grid[1]
    rho = torch.full((positions,), 1 / positions, dtype=torch.float64)
    return Readout(norm_numbers(trunk.head.norm), rho, "after_pool", P, bias)
