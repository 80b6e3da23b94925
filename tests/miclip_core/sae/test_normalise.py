"""Units of training and the folds out of them, against arithmetic on paper and each other; the schedule beside them."""

from __future__ import annotations

import pytest
import torch

from miclip_core.sae.normalise import (
    Norm,
    fold,
    geometric_median,
    measure_norm,
)
from miclip_core.sae.sae import Sae
from miclip_core.sae.schedule import next_threshold, rate
from schemas.sae import ARCHS, SaeConfig
from tests.miclip_core.sae.runs import settings

ROWS = torch.tensor([[3.0, 0], [5, 0], [4, 2], [4, -2]])  # mean (4, 0), squared distances 1, 1, 4, 4


@pytest.mark.parametrize(
    ("normalise", "centre", "mu", "scale"),
    [
        ("unit_ms", "mean", [4, 0], 2.5**0.5),
        ("sqrt_d", "mean", [4, 0], 1.5 / 2**0.5),
        ("none", "mean", [4, 0], 1.0),
        ("unit_ms", "none", [0, 0], 18.5**0.5),
        ("unit_ms", "geometric_median", [4, 0], 2.5**0.5),
    ],
)
def test_norms_on_paper(normalise: str, centre: str, mu: list[float], scale: float) -> None:
    norm = measure_norm(ROWS, settings("topk", normalise=normalise, centre=centre))
    assert norm.mu_D.tolist() == pytest.approx(mu, abs=1e-4)
    assert norm.scale == pytest.approx(scale, rel=1e-6)


def test_the_geometric_median_withstands_an_outlier_and_points_on_itself() -> None:
    """Three of four points at the origin: the median is there, though the iteration starts elsewhere and lands on them."""
    rows = torch.tensor([[0.0, 0], [0, 0], [0, 0], [100, 0]])
    assert geometric_median(rows).abs().max() < 1e-3
    assert torch.equal(geometric_median(torch.ones(1, 3)), torch.ones(3).double())


@pytest.mark.parametrize("arch", ARCHS)
def test_all_folds_give_the_same_reconstruction(arch: str) -> None:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    m, d = 20, 6
    gate = {name: normal(m) for name in ("b_gate", "b_mag", "r_mag")} if arch == "gated" else {}
    b_enc = torch.zeros(m).double() if arch == "gated" else normal(m)
    threshold = normal(m).abs() if arch in ("batchtopk", "matryoshka", "jumprelu") else None
    sae = Sae(SaeConfig(arch=arch, d=d, latents=m, k=4), normal(m, d), b_enc, normal(m, d), normal(d), threshold, gate)
    norm, x = Norm(normal(d), 3.7), normal(40, d) * 4
    codes, x_hat_n = sae.reconstruct(norm.apply(x, torch.float64))
    expected = x_hat_n * norm.scale + norm.mu_D
    folded = fold(sae, norm)
    torch.testing.assert_close(folded.reconstruct(x)[1], expected)
    torch.testing.assert_close(folded.encode(x).dense(), codes.dense() * 3.7)
    assert torch.equal(folded.W_dec, sae.W_dec)


def test_the_rate_rises_from_zero_stays_and_falls_to_zero() -> None:
    s = settings("topk", lr=1.0, steps=100, warmup_steps=10, decay_from=0.8)
    assert [rate(s, step) for step in (0, 5, 10, 79, 80, 90, 99)] == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0.05])
    short = settings("topk", lr=1.0, steps=10, warmup_steps=100, decay_from=0.8)
    assert [rate(short, step) for step in (0, 5, 9)] == pytest.approx([0, 0.05, 0.09])


def test_the_threshold_is_a_mean_first_and_a_slow_mean_later() -> None:
    assert next_threshold(-1.0, 0, 5.0) == 5.0
    assert next_threshold(5.0, 1, 7.0) == 6.0
    assert next_threshold(1.0, 10**6, 2.0) == pytest.approx(0.999 * 1 + 0.001 * 2)
