"""The ResNet of the transformers library: stages of residual blocks, mean pooling, and a classifier if it has one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from miclip_core.zoo.activations import activation_kind
from miclip_core.zoo.hf_vit import input_size
from miclip_core.zoo.sitemap import Entry, Family, Native, Readout


def matches(visual: nn.Module) -> bool:
    """A model with an embedder, stages and a pooler."""
    tower = _tower(visual)
    return hasattr(tower, "embedder") and hasattr(getattr(tower, "encoder", None), "stages")


def describe(visual: Any) -> Family:
    """The site map of one model; stages count from 1. `n_blocks` counts residual blocks, `width` is the last stage's."""
    tower = _tower(visual)
    stages = tower.encoder.stages
    input_hw = input_size(tower)
    grid = _grid(tower, input_hw)
    return Family(
        name="hf_resnet",
        visual=visual,
        sites=_sites(visual, tower),
        forward=lambda images_BCIJ: visual(pixel_values=images_BCIJ),
        n_blocks=sum(len(stage.layers) for stage in stages),
        width=tower.config.hidden_sizes[-1],
        grid=grid,
        input_hw=input_hw,
        norm_eps=tower.embedder.embedder.normalization.eps,
        act_kind=activation_kind(stages[0].layers[0].activation),
        pool="avg",
        final_norm_position="none",
        steps=_steps(tower),
        readout=partial(_readout, grid),
    )


def _tower(visual: Any) -> Any:
    return getattr(visual, "base_model", visual)


def _grid(tower: Any, input_hw: tuple[int, int]) -> tuple[int, int]:
    """Positions of the last stage: every stride of 2 rounds up."""
    halvings = 2 + len(tower.encoder.stages) - int(not tower.config.downsample_in_first_stage)
    rows, columns = (-(-side // 2**halvings) for side in input_hw)
    return rows, columns


def _sites(visual: Any, tower: Any) -> dict[str, Entry]:
    sites: dict[str, Entry] = {"stem": Native(tower.embedder, layout="map")}
    for s, stage in enumerate(tower.encoder.stages, 1):
        for b, block in enumerate(stage.layers):
            # The last convolution of a block has no activation of its own: the sum with the shortcut comes first.
            for number, convolution in enumerate(block.layer[:-1], 1):
                sites[f"conv.{s}.{b}.act{number}"] = Native(convolution.activation, layout="map")
            sites[f"conv.{s}.{b}.out"] = Native(block, layout="map")
        sites[f"stage.{s}"] = Native(stage, layout="map")
    pooled = Native(
        tower.pooler,
        layout="vector",
        read=lambda x_BC11: x_BC11.flatten(1),
        write=lambda x_BC11, new_BC: new_BC.view_as(x_BC11),
    )
    sites["pooled"] = pooled
    if not hasattr(visual, "classifier"):
        return sites | {"embedding": pooled}
    flatten, _ = visual.classifier
    return sites | {
        "embedding": Native(flatten, layout="vector"),
        "logits": Native(visual.classifier, layout="vector"),
    }


def _steps(tower: Any) -> tuple[tuple[nn.Module, str | None], ...]:
    numbered = (
        (s, b, block) for s, stage in enumerate(tower.encoder.stages, 1) for b, block in enumerate(stage.layers)
    )
    return ((tower.embedder, "stem"), *((block, f"conv.{s}.{b}.out") for s, b, block in numbered))


def _readout(grid: tuple[int, int]) -> Readout:
    """The embedding is the mean over the positions of the last stage."""
    positions = grid[0] * grid[1]
    rho = torch.full((positions,), 1 / positions, dtype=torch.float64)
    return Readout(norm=None, rho=rho, position="none", projection=None)
