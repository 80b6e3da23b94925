"""Skewness, kurtosis and activity of units, against numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miclip_core.rosetta import statistics
from miclip_core.rosetta.statistics import UnitStatistics
from miclip_core.zoo.reducers import Moments
from tests.interpolated_maps import make_maps

PLACES = np.arange(12)
NAMES = [f"{i}.png" for i in range(30)]


def moments_of(x_BPU: torch.Tensor) -> Moments:
    moments = Moments()
    moments.add(x_BPU, np.arange(x_BPU.shape[1]), [])
    return moments


@pytest.fixture(scope="module")
def maps() -> torch.Tensor:
    x = make_maps(30, (3, 4), 6, heavy=True)
    x[..., 2] = x[..., 2].clamp_min(0)
    x[..., 5] = 2.5
    return x


def both_passes(x: torch.Tensor) -> UnitStatistics:
    found = UnitStatistics(moments_of(x))
    found.add(x, PLACES, NAMES)
    return found


def test_skewness_and_excess_kurtosis_are_those_of_all_samples(maps: torch.Tensor) -> None:
    found = both_passes(maps)
    x = maps.flatten(0, 1)[:, :5].double().numpy()
    z = (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(found.skewness[:5], (z**3).mean(0), rtol=1e-10)
    np.testing.assert_allclose(found.kurtosis[:5], (z**4).mean(0) - 3, rtol=1e-10)
    assert found.skewness[5] == found.kurtosis[5] == 0


def test_normal_numbers_have_no_excess() -> None:
    x = torch.randn(400, 64, 2, generator=torch.Generator().manual_seed(0))
    found = both_passes(x)
    assert np.abs(found.skewness).max() < 0.1 and np.abs(found.kurtosis).max() < 0.15


def test_a_unit_that_is_never_negative_is_active_above_zero_others_above_three_sds() -> None:
    x = torch.zeros(2, 100, 2)
    x[0, :3, 0] = 0.01  # a ReLU: active at three positions of one image
    x[..., 1] = torch.tensor([-1.0, 1.0]).repeat(50)
    x[1, 7, 1] = 50.0
    found = both_passes(x)
    assert found.active_positions.tolist() == [3, 1]
    assert found.active_images.tolist() == [1, 1]
    assert found.active_fraction.tolist() == [3 / 200, 1 / 200]


def test_units_active_in_few_images_or_at_few_positions_are_rare() -> None:
    x = torch.zeros(10, 12, 4)
    x[:4, :, 0] = 1  # 48 positions, but of four images
    x[:5, :3, 1] = 1  # five images, but 15 positions
    x[:5, :4, 2] = 1  # five images, 20 positions
    assert both_passes(x).rare().tolist() == [True, True, False, True]
    assert both_passes(x).rare(min_images=4, min_positions=1).tolist() == [False, False, False, True]


def test_shards_merge_and_slices_do_not_matter(maps: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    moments, whole = moments_of(maps), both_passes(maps)
    monkeypatch.setattr(statistics, "SLICE", 100)
    first, second = UnitStatistics(moments), UnitStatistics(moments)
    first.add(maps[:11], PLACES, NAMES[:11])
    second.add(maps[11:], PLACES, NAMES[11:])
    first.merge(UnitStatistics.from_state(second.state(), moments))
    assert (first.n, first.images) == (whole.n, whole.images) == (360, 30)
    for name in ("skewness", "kurtosis", "active_positions", "active_images"):
        np.testing.assert_allclose(getattr(first, name), getattr(whole, name), rtol=1e-12)


def test_statistics_about_other_means_do_not_merge(maps: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="moments of all images"):
        UnitStatistics(moments_of(maps)).merge(UnitStatistics(moments_of(maps[:3])))
    with pytest.raises(ValueError, match="all rows"):
        UnitStatistics(Moments())
