"""What weights under Adam need to go on after a pause with the same bits: named tensors, out and back in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_MOMENTS = ("exp_avg", "exp_avg_sq")


def keep_weights(weights: Mapping[str, Tensor], adam: torch.optim.Adam) -> dict[str, Tensor]:
    """Weights and moments as `weight.<name>` and `adam.<moment>.<name>`; the tensors are those in use, not copies."""
    kept = {f"weight.{name}": weight for name, weight in weights.items()}
    for name, weight in weights.items():
        moments = adam.state.get(weight) or {key: torch.zeros_like(weight) for key in _MOMENTS}
        kept |= {f"adam.{key}.{name}": moments[key] for key in _MOMENTS}
    return kept


def restore_weights(
    weights: Mapping[str, Tensor], adam: torch.optim.Adam, kept: Mapping[str, Tensor], steps: int
) -> None:
    """Copy what `keep_weights` kept after `steps` updates into the same weights and their Adam; call it without gradients."""
    for name, weight in weights.items():
        weight.copy_(kept[f"weight.{name}"])
        moments = {key: kept[f"adam.{key}.{name}"].to(weight, copy=True) for key in _MOMENTS}
        adam.state[weight] = {"step": torch.tensor(float(steps), device=weight.device), **moments}


def differing(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Names whose tensor is missing, unknown or of another shape, sorted."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in some.items()} for some in (expected, found)]
    return sorted(name for name in {*shapes[0], *shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
