"""Correlations of all pairs are counted in bins, so that the quantile of many tiles is that of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miclip_core.rosetta.chance import BINS, Counted


def test_a_quantile_is_that_of_numpy_to_the_width_of_a_bin() -> None:
    r = torch.rand(700, 900, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.4
    counted = Counted()
    counted.add(r)
    for q in (0.01, 0.5, 0.999):
        exact = np.quantile(r.clamp(-1, 1).numpy(), q, method="inverted_cdf")
        assert exact <= counted.quantile(q) + 1e-6 and counted.quantile(q) - exact <= 2 / BINS + 1e-6


def test_tiles_in_any_order_count_like_the_whole() -> None:
    r = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)) * 0.2
    whole, parts = Counted(), Counted()
    whole.add(r)
    for tile in (r[40:, :50], r[:40], r[40:, 50:]):
        part = Counted()
        part.add(tile)
        parts.merge(part.counts)
    assert (whole.counts == parts.counts).all() and whole.counts.sum() == 64 * 96


def test_units_that_are_not_compared_count_for_nothing() -> None:
    r = torch.tensor([[0.5, -torch.inf], [torch.nan, -0.5]])
    counted = Counted()
    counted.add(r)
    assert counted.counts.sum() == 2
    assert counted.quantile(0.5) == pytest.approx(-0.5, abs=2 / BINS) and counted.quantile(1.0) == pytest.approx(
        0.5, abs=2 / BINS
    )


def test_there_is_no_quantile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no correlation was counted"):
        Counted().quantile(0.5)
