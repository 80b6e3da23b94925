"""Where the activations of a convolutional residual block are, whoever wrote it."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from torch import nn

from miclip_core.zoo.sitemap import Entry, Native
from schemas.errors import UnsupportedBlock


def residual_sites(block: Any, name: str) -> dict[str, Entry]:
    """`name.act1` (and `act2` of a bottleneck) after their activation, and `name.out`, the block's output after its own.

    block: convolutions conv1, conv2 and maybe conv3. Activations are modules act1.. (open_clip, timm), relu1.. (OpenAI)
    or one shared `relu` (torchvision).
    """
    count = 3 if hasattr(block, "conv3") else 2
    shared = getattr(block, "relu", None)
    sites: dict[str, Entry] = {}
    for number in range(1, count):
        own = getattr(block, f"act{number}", None) or getattr(block, f"relu{number}", None)
        module, call, calls = (own, 0, 1) if own is not None else (shared, number - 1, count)
        if module is None:
            raise UnsupportedBlock(f"{name}: {type(block).__name__} has no activation after convolution {number}")
        # A shared in-place ReLU writes into its own earlier outputs' successors only; a copy costs little and is safe.
        sites[f"{name}.act{number}"] = Native(module, layout="map", call=call, calls=calls, clone=own is None)
    return sites | {f"{name}.out": Native(block, layout="map")}


def residual_steps(trunk: Any) -> tuple[tuple[nn.Module, str | None], ...]:
    """The steps of a trunk with a stem and then `layer1` to `layer4`, sequences of blocks; none where a stage is another.

    The stem is all that the trunk holds before its first stage.
    """
    stages = [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]
    stem = list(takewhile(lambda part: part is not stages[0], trunk.children()))
    if not stem or not all(type(stage) is nn.Sequential for stage in stages):
        return ()
    blocks = ((block, f"conv.{s}.{b}.out") for s, stage in enumerate(stages, 1) for b, block in enumerate(stage))
    return (*((part, None) for part in stem[:-1]), (stem[-1], "stem"), *blocks)


def has_activations(block: Any) -> bool:
    """Whether `residual_sites` knows this block."""
    return hasattr(block, "conv2") and any(hasattr(block, name) for name in ("act1", "relu1", "relu"))
