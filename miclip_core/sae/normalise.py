"""The units that an SAE is trained in: where their origin is, how long one unit is, and how weights are taken back out of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from miclip_core.sae.parallel import Alone, Group
from miclip_core.sae.sae import Sae, check_finite
from schemas.errors import BadTokens
from schemas.sae import Normalisation, SaeSettings

_ROWS = 8192
_ITERATIONS, _STEP_NORM, _NEAREST = 100, 1e-5, 1e-12
_NO_VARIANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Norm:
    """`x_n = (x - mu) / scale`: mu [d] float64, scale in units of the model."""

    mu_D: Tensor
    scale: float

    def apply(self, x_ND: Tensor, dtype: torch.dtype) -> Tensor:
        """Tokens [N,d] in training units."""
        return (x_ND.to(self.mu_D.device, dtype) - self.mu_D.to(dtype)) / self.scale


def measure_norm(rows_ND: Tensor, settings: SaeSettings, group: Group | None = None) -> Norm:
    """The norm of a window of tokens [N,d], of which every worker of `group` holds its own part.

    unit_ms: scale = sqrt(mean ||x - mu||^2). sqrt_d: mean ||x - mu|| / sqrt(d). none: 1. Sums are float64.

    Raises:
        BadTokens: NaN or infinite values, no rows at all, or rows that are all alike.
    """
    group = group or Alone()
    check_finite(rows_ND)
    device, d = rows_ND.device, rows_ND.shape[1]
    total = _sums(rows_ND, lambda x: torch.cat((x.sum(0), x.new_tensor([len(x)]))), d + 1, group)
    count, mean_D = float(total[-1]), total[:-1] / total[-1]
    if count == 0:
        raise BadTokens("no tokens to measure the normalisation on; expected at least two that differ")
    squares = _sums(rows_ND, lambda x: torch.stack(((x - mean_D).square().sum(), x.square().sum())), 2, group)
    if float(squares[0]) <= _NO_VARIANCE * float(squares[1]):
        raise BadTokens(f"all {int(count)} tokens are alike (no variance), so there is nothing to learn at this site")
    mu_D = {
        "mean": lambda: mean_D,
        "geometric_median": lambda: geometric_median(rows_ND, group),
        "none": lambda: torch.zeros(d, dtype=torch.float64, device=device),
    }[settings.centre]()
    return Norm(mu_D, _scale(rows_ND, mu_D, settings.normalise, count, group))


def _scale(rows_ND: Tensor, mu_D: Tensor, kind: Normalisation, count: float, group: Group) -> float:
    if kind == "none":
        return 1.0
    if kind == "unit_ms":
        return float(_sums(rows_ND, lambda x: (x - mu_D).square().sum()[None], 1, group)) ** 0.5 / count**0.5
    return float(_sums(rows_ND, lambda x: (x - mu_D).norm(dim=1).sum()[None], 1, group)) / count / len(mu_D) ** 0.5


def geometric_median(rows_ND: Tensor, group: Group | None = None) -> Tensor:
    """The point [d] float64 with the least sum of distances to tokens [N,d] (Weiszfeld's iteration, from the mean).

    A distance counts as at least 1e-12, so that a token at the point itself gives no NaN.
    """
    group, d = group or Alone(), rows_ND.shape[1]

    def pulled(towards_D: Tensor | None) -> Tensor:
        def part(x: Tensor) -> Tensor:
            away = x.new_ones(len(x)) if towards_D is None else (x - towards_D).norm(dim=1).clamp(min=_NEAREST)
            return torch.cat(((x / away[:, None]).sum(0), (1 / away).sum()[None]))

        total = _sums(rows_ND, part, d + 1, group)
        return total[:-1] / total[-1]

    point_D = pulled(None)
    for _ in range(_ITERATIONS):
        last_D, point_D = point_D, pulled(point_D)
        if float((point_D - last_D).norm()) < _STEP_NORM:
            break
    return point_D


def _sums(rows_ND: Tensor, part: Callable[[Tensor], Tensor], length: int, group: Group) -> Tensor:
    """The sum of `part` over slices of the rows in float64, over all workers."""
    total = torch.zeros(length, dtype=torch.float64, device=rows_ND.device)
    for rows in rows_ND.split(_ROWS):
        total += part(rows.double())
    group.all_sum(total)
    return total


# ---------------------------------------------------------------- folds


def fold(sae: Sae, norm: Norm) -> Sae:
    """An SAE of training units as one of the model's units with the same decoder rows; activations become scale * f."""
    s = norm.scale
    return replace(
        sae,
        config=sae.config.model_copy(update={"norm_scale": s}),
        b_enc=sae.b_enc * s,
        b_dec=_b_dec(sae, norm),
        threshold=None if sae.threshold is None else sae.threshold * s,
        gate={name: value if name == "r_mag" else value * s for name, value in sae.gate.items()},
    )


def _b_dec(sae: Sae, norm: Norm) -> Tensor:
    return (norm.mu_D + norm.scale * sae.b_dec.double()).to(sae.b_dec.dtype)
