"""Floating-point numbers as integers of the same order, so that ranks and quantiles of activations are exact."""

from __future__ import annotations

import torch
from torch import Tensor


def to_ordered(values: Tensor) -> Tensor:
    """int32 that sort as the float32 numbers do, of the same shape; both zeros are equal. NaN has no place in the order."""
    bits = (values.float() + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def from_ordered(keys: Tensor) -> Tensor:
    """The float32 numbers that `to_ordered` gave int32 keys for."""
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).view(torch.float32)
