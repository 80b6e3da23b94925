"""Which activation function a module is, found by evaluating it, not by its name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.errors import UnsupportedBlock
from schemas.models import ActKind

FORMULAS: dict[ActKind, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu": F.relu,
}


def activation_kind(module: nn.Module | Callable[[Tensor], Tensor]) -> ActKind:
    """Compare the module with the known formulas on [-4, 4] in float64.

    Raises:
        UnsupportedBlock: it equals none of them.
    """
    x = torch.linspace(-4, 4, 81, dtype=torch.float64, device="cpu")
    with torch.no_grad(), torch.device("cpu"):
        y = module(x.clone())
        for kind, formula in FORMULAS.items():
            if torch.allclose(y, formula(x), rtol=0, atol=1e-9):
                return kind
    raise UnsupportedBlock(f"activation {module!r} is none of {', '.join(FORMULAS)}")
