"""Small runs that the tests of SAE training share: settings of every kind, and tokens with something to find in them."""

from __future__ import annotations

import torch
from torch import Tensor

from schemas.sae import ARCHS, SaeSettings

D, M = 12, 40
KINDS = ARCHS


def settings(arch: str, **changes) -> SaeSettings:
    """A run of 50 steps of 40 latents on width 12."""
    plain = {
        "arch": arch,
        "latents": M,
        "lr": 3e-3,
        "steps": 50,
        "warmup_steps": 10,
        "dead_tokens": 70,
        "seed": 3,
        "sparsity_warmup_steps": 20,
    }
    per_kind = {
        "relu": {"l1": 0.05},
        "gated": {"l1": 0.05},
        "jumprelu": {"k": 4, "bandwidth": 0.2, "initial_threshold": 0.1},
        "matryoshka": {"k": 4, "group_sizes": (5, 10, 25), "level_weights": (0.5, 0.3, 0.4)},
    }.get(arch, {"k": 4})
    return SaeSettings(**{**plain, **per_kind, **changes})


def tokens(n: int, seed: int = 0, d: int = D, directions: int = 20, active: int = 3) -> Tensor:
    """Sparse sums of fixed random directions, off centre, with a little noise; float32 [n, d]."""
    fixed = torch.Generator().manual_seed(99)
    atoms = torch.nn.functional.normalize(torch.randn(directions, d, generator=fixed), dim=1)
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, directions, generator=draw).argsort(1)[:, :active]
    weights = torch.zeros(n, directions).scatter_(1, chosen, torch.rand(n, active, generator=draw) + 0.5)
    return weights @ atoms + 0.7 + 0.01 * torch.randn(n, d, generator=draw)
