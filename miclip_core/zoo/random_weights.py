"""Untrained weights that are a pure function of a seed and the parameter names: the same on every machine."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_RUNNING = ("running_mean", "running_var")


def fill_random(module: nn.Module, seed: int) -> None:
    """Overwrite all parameters and batch statistics.

    Matrices and kernels: normal with variance 1 / fan-in. Norm scales 1 + 0.1 n, biases 0.05 n (n standard normal), so
    that no term of a sum is trivially one or zero; other vectors n / sqrt(length). Scalars keep what the library gave.
    """
    with torch.no_grad():
        for owner_name, owner in module.named_modules():
            for name, parameter in owner.named_parameters(recurse=False):
                parameter.copy_(_value(owner, name, parameter, _normal(seed, f"{owner_name}.{name}", parameter)))
            for name, buffer in owner.named_buffers(recurse=False):
                if name in _RUNNING:
                    noise = _normal(seed, f"{owner_name}.{name}", buffer)
                    buffer.copy_(0.1 * noise if name == "running_mean" else 1 + 0.2 * noise.abs())


def _value(owner: nn.Module, name: str, parameter: Tensor, noise: Tensor) -> Tensor:
    if parameter.ndim == 0 or parameter.numel() == 1:
        return parameter
    if name.endswith("bias"):
        return 0.05 * noise
    if parameter.ndim == 1 and name == "weight":
        return 1 + 0.1 * noise
    if parameter.ndim == 1:
        return noise * parameter.numel() ** -0.5
    fan_in = parameter[0].numel()
    return noise * fan_in**-0.5


def _normal(seed: int, name: str, like: Tensor) -> Tensor:
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "little"))
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.dtype)
