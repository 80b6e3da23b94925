"""PSNR and SSIM of small images, against loops over pixels and windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from miclip_core.rosetta.image_scores import psnr, ssim


def images(seed: int, noise: float = 40.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of 9 x 11 pixels, the second like the first with noise."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (2, 3, 9, 11))
    b = np.clip(a + rng.normal(0, noise, a.shape), 0, 255)
    return torch.from_numpy(a.astype(np.uint8)), torch.from_numpy(b.astype(np.uint8))


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """One channel after the other, window by window, with the covariance of numpy."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for c in range(a.shape[0]):
        for i in range(3, a.shape[1] - 3):
            for j in range(3, a.shape[2] - 3):
                x = a[c, i - 3 : i + 4, j - 3 : j + 4].astype(float).ravel()
                y = b[c, i - 3 : i + 4, j - 3 : j + 4].astype(float).ravel()
                cov = np.cov(x, y, ddof=1)
                top = (2 * x.mean() * y.mean() + c1) * (2 * cov[0, 1] + c2)
                values.append(top / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
    return float(np.mean(values))


def test_psnr_is_ten_logarithms_of_the_peak_over_the_error() -> None:
    a, b = images(0)
    for found, x, y in zip(psnr(a, b), a.tolist(), b.tolist(), strict=True):
        squares = [(float(p) - float(q)) ** 2 for p, q in zip(np.ravel(x), np.ravel(y), strict=True)]
        assert found.item() == pytest.approx(10 * math.log10(255**2 / (sum(squares) / len(squares))), rel=1e-12)


def test_one_step_of_grey_everywhere_is_48_dB_and_no_difference_is_infinite() -> None:
    a = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    assert psnr(a, a + 1).item() == pytest.approx(20 * math.log10(255))
    assert psnr(a, a).item() == math.inf


def test_ssim_is_the_mean_over_whole_windows_of_the_sample_statistics() -> None:
    a, b = images(1)
    for found, x, y in zip(ssim(a, b), a.numpy(), b.numpy(), strict=True):
        assert found.item() == pytest.approx(slow_ssim(x, y), rel=1e-10)


def test_an_image_is_wholly_like_itself_and_less_like_a_noisier_one() -> None:
    a, b = images(2, noise=10)
    _, worse = images(2, noise=60)
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0])
    assert (ssim(a, b) > ssim(a, worse)).all()


def test_images_of_another_type_shape_or_below_the_window_are_refused() -> None:
    a, b = images(3)
    with pytest.raises(ValueError, match="uint8"):
        psnr(a.float(), b.float())
    with pytest.raises(ValueError, match="one shape"):
        ssim(a, b[:, :, :8])
    with pytest.raises(ValueError, match="at least 7"):
        ssim(a[:, :, :6], b[:, :, :6])
