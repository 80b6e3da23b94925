"""ResNets as timm and torchvision write them: a stem, four stages of basic or bottleneck blocks, mean pooling."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from miclip_core.zoo.activations import activation_kind
from miclip_core.zoo.residual import has_activations, residual_sites, residual_steps
from miclip_core.zoo.sitemap import Entry, Family, Native, Readout
from miclip_core.zoo.timm_head import input_hw, output_sites, plain_output, projection, trunk_of

STAGES = (1, 2, 3, 4)
_TRUNK = ("conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4", "fc")


def matches(visual: nn.Module) -> bool:
    """A trunk with ResNet's parts whose blocks have their activations as modules, and a vector as its output."""
    trunk: Any = trunk_of(visual)
    if not all(hasattr(trunk, name) for name in _TRUNK) or _pool_type(trunk) == "" or not plain_output(visual):
        return False
    return all(has_activations(block) for s in STAGES for block in getattr(trunk, f"layer{s}"))


def describe(visual: Any) -> Family:
    """The site map of one model or tower; stages count from 1, `n_blocks` residual blocks, `width` is the last stage's."""
    trunk = trunk_of(visual)
    hw = input_hw(visual)
    info = getattr(trunk, "feature_info", None)
    reduction = info[-1]["reduction"] if info else 32
    grid = (-(-hw[0] // reduction), -(-hw[1] // reduction))
    first = trunk.layer1[0]
    average = _pool_type(trunk) in ("avg", "fast", "fastavg")
    return Family(
        name="timm_resnet",
        visual=visual,
        sites=_sites(visual, trunk),
        forward=visual,
        n_blocks=sum(len(getattr(trunk, f"layer{s}")) for s in STAGES),
        width=_width(trunk),
        grid=grid,
        input_hw=hw,
        norm_eps=getattr(trunk.bn1, "eps", 0.0),
        act_kind=activation_kind(getattr(first, "act1", None) or first.relu),
        pool="avg" if average else "none",
        final_norm_position="none",
        steps=residual_steps(trunk),
        readout=partial(_readout, visual, grid) if average else None,
    )


def _pool_type(trunk: Any) -> str:
    """timm names its pooling; torchvision has one, the mean."""
    return getattr(getattr(trunk, "global_pool", None), "pool_type", "avg")


def _width(trunk: Any) -> int:
    return getattr(trunk, "num_features", None) or trunk.fc.in_features


def _sites(visual: Any, trunk: Any) -> dict[str, Entry]:
    sites: dict[str, Entry] = {"stem": Native(trunk.maxpool, layout="map")}
    for s in STAGES:
        stage = getattr(trunk, f"layer{s}")
        for b, block in enumerate(stage):
            sites |= residual_sites(block, f"conv.{s}.{b}")
        sites[f"stage.{s}"] = Native(stage, layout="map")
    return sites | output_sites(visual, trunk.fc)


def _readout(visual: Any, grid: tuple[int, int]) -> Readout:
    """The mean over positions; raises UnsupportedBlock where an MLP makes the embedding."""
    P, bias = projection(visual, trunk_of(visual).fc)
    positions = grid[0] * grid[1]
    return Readout(None, torch.full((positions,), 1 / positions, dtype=torch.float64), "none", P, bias)
