"""How near one image is to another, pixel by pixel: PSNR and SSIM of 8-bit images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

PEAK = 255.0
WINDOW = 7
"""Pixels on a side of SSIM's uniform window."""
K1, K2 = 0.01, 0.03


def psnr(a_BCIJ: Tensor, b_BCIJ: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, float64 [B], of uint8 images; infinite for equal ones.

    Raises:
        ValueError: the images are of other types or shapes.
    """
    a, b = _pair(a_BCIJ, b_BCIJ)
    error_B = (a - b).square().flatten(1).mean(1)
    return 10 * torch.log10(PEAK**2 / error_B)


def ssim(a_BCIJ: Tensor, b_BCIJ: Tensor) -> Tensor:
    """Structural similarity, float64 [B], of uint8 images: means over the windows that lie inside, then over channels.

    Uniform windows of 7 x 7 pixels and sample covariances (Wang et al. 2004, with the window and the constants that are
    usual in software: K1 0.01, K2 0.03).

    Raises:
        ValueError: the images are of other types or shapes, or a side is shorter than the window.
    """
    a, b = _pair(a_BCIJ, b_BCIJ)
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(f"images of {a.shape[-2]} x {a.shape[-1]} pixels; SSIM takes at least {WINDOW} on a side")
    mean_a, mean_b = _windows(a), _windows(b)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    var_a = sample * (_windows(a * a) - mean_a**2)
    var_b = sample * (_windows(b * b) - mean_b**2)
    covariance = sample * (_windows(a * b) - mean_a * mean_b)
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    alike = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (alike / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).flatten(1).mean(1)


def _windows(x_BCIJ: Tensor) -> Tensor:
    """Means over every window that lies inside."""
    return avg_pool2d(x_BCIJ, WINDOW, stride=1)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"expected two uint8 [B, C, h, w] of one shape, found {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
        )
    return a.double(), b.double()
