"""What an objective gets and gives: one batch of tokens as a data-parallel worker sees it, and its losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from miclip_core.sae.parallel import Group
from miclip_core.sae.sae import check_finite
from schemas.errors import BadTokens
from schemas.sae import SaeSettings

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """x [N,D] in training units; tokens: of all workers together; step: counted from 0; dead: latents, ascending."""

    x_ND: Tensor
    tokens: int
    step: int
    dead: Tensor
    group: Group


class Outcome(NamedTuple):
    """Means over the tokens of all workers; which latents had a value above 0; the smallest such value, if there is any."""

    loss: float
    mse: float
    aux: float
    fvu: float
    l0: float
    fired_U: Tensor
    smallest: float | None


def encoder_operands(settings: SaeSettings, weights: Weights) -> tuple[Tensor, torch.dtype]:
    """The encoder's matrix and the dtype of what is multiplied with it: bf16 copies where the precision asks for them."""
    W_UD = weights["W_enc"]
    dtype = torch.bfloat16 if settings.precision == "bf16" else W_UD.dtype
    return W_UD.to(dtype), dtype


def sums_over(group: Group, **parts: Tensor) -> dict[str, Tensor]:
    """The sums of small tensors over all workers, in float64, exchanged in one message."""
    flat = torch.cat([part.double().flatten() for part in parts.values()])
    group.all_sum(flat)
    pieces = flat.split([part.numel() for part in parts.values()])
    return {name: piece.view(part.shape) for (name, part), piece in zip(parts.items(), pieces)}


def variance_of(batch: Batch, square_x: Tensor, sum_x_D: Tensor) -> float:
    """sum ||x - mean||^2 from the global sums of ||x||^2 and x.

    Raises:
        BadTokens: some worker's tokens are not finite; every worker raises, so that none waits for another.
    """
    if not bool(torch.isfinite(square_x)):
        check_finite(batch.x_ND)
        if batch.group.size > 1:
            raise BadTokens("the tokens of another data-parallel worker hold NaN or infinite values")
        raise BadTokens(
            f"tokens of length {float(batch.x_ND.abs().max()):g} in training units overflow; is this the right site?"
        )
    return max(0.0, float(square_x - sum_x_D.square().sum() / batch.tokens))


def ratio(part: float, whole: float) -> float:
    """part / whole, and 0 for 0 / 0."""
    return part / whole if whole > 0 else float(part > 0)


def any_worker(group: Group, fired_U: Tensor) -> Tensor:
    """Latents that fired for some worker, bool [U]."""
    flags = fired_U.to(torch.uint8)
    group.all_max(flags)
    return flags.bool()
