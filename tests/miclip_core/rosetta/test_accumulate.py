"""Streaming correlations of a tile, against numpy.corrcoef of maps that were interpolated and written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from miclip_core.rosetta import accumulate
from miclip_core.rosetta.accumulate import Products
from miclip_core.rosetta.crossing import Crossing
from miclip_core.rosetta.grids import Grid
from miclip_core.rosetta.standardise import TOLERANCES, Precision, Scale, standardised
from miclip_core.zoo.reducers import Moments
from tests.interpolated_maps import GRIDS, make_maps, pearson


def scale_of(x_BPU: Tensor) -> Scale:
    moments = Moments()
    moments.add(x_BPU, np.arange(x_BPU.shape[1]), [])
    return Scale.of(moments)


def correlate(
    x: Tensor, a: Grid, y: Tensor, b: Grid, target: Grid, precision: Precision = "fp32", chunk: int = 5
) -> np.ndarray:
    scales = scale_of(x), scale_of(y)
    products = Products(Crossing(a, b, target), x.shape[2], y.shape[2])
    for i in range(0, len(x), chunk):
        z = [standardised(maps[i : i + chunk], scale, precision)[0] for maps, scale in zip((x, y), scales)]
        products.add(*z)
    return products.correlations().numpy()


@pytest.mark.parametrize("units", [(6, 7), (20, 24)])
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-6), ("fp16", 1e-4), ("bf16", 1e-3)])
@pytest.mark.parametrize("a, b, target", GRIDS)
def test_streamed_correlations_are_those_of_interpolated_maps(
    a: Grid, b: Grid, target: Grid, precision: Precision, tolerance: float, units: tuple[int, int]
) -> None:
    x, y = make_maps(40, a, units[0], 1), make_maps(40, b, units[1], 2)
    r = correlate(x, a, y, b, target, precision)
    np.testing.assert_allclose(r, pearson(x, a, y, b, target), atol=tolerance)
    assert np.abs(r).max() > 0.2


def test_rounding_to_half_keeps_heavy_tails_within_the_stated_tolerance() -> None:
    x, y = make_maps(200, (7, 7), 8, 1, heavy=True), make_maps(200, (14, 14), 9, 2, heavy=True)
    exact = pearson(x, (7, 7), y, (14, 14), (14, 14))
    np.testing.assert_allclose(correlate(x, (7, 7), y, (14, 14), (14, 14), "fp16", 50), exact, atol=1e-4)
    assert np.abs(correlate(x, (7, 7), y, (14, 14), (14, 14), "fp16", 50) - exact).max() > 1e-7  # it did round


def sparse_maps(places: int, seed: int) -> Tensor:
    """Of 40 images on 7 x 7: 100 units that are active in the same few places, each as it likes."""
    maps = torch.zeros(40 * 49, 100)
    maps[torch.arange(places) * (40 * 49 // places)] = 1 + 3 * torch.rand(
        places, 100, generator=torch.Generator().manual_seed(seed)
    )
    return maps.unflatten(0, (40, 49))


@pytest.mark.parametrize("places", [5, 20])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_rounding_keeps_units_that_are_seldom_active_within_the_stated_tolerance(
    precision: Precision, places: int
) -> None:
    # a few values make all of r, so that their rounding does not average out
    x, y, finer = sparse_maps(places, 1), sparse_maps(places, 2), (14, 14)
    error = np.abs(correlate(x, (7, 7), y, (7, 7), finer, precision) - pearson(x, (7, 7), y, (7, 7), finer)).max()
    assert error < TOLERANCES[precision] and (precision == "fp32" or error > TOLERANCES[precision] / 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-6), ("fp16", 1e-4), ("bf16", 1e-3)])
def test_a_gpu_gives_the_same(precision: Precision, tolerance: float) -> None:
    x, y = make_maps(40, (7, 7), 30, 1), make_maps(40, (14, 14), 40, 2)
    products = Products(Crossing((7, 7), (14, 14), (14, 14)), 30, 40, "cuda")
    for first in range(0, 40, 8):
        z = (standardised(maps[first : first + 8].cuda(), scale_of(maps), precision)[0] for maps in (x, y))
        products.add(*z)
    r = products.correlations().cpu().numpy()
    np.testing.assert_allclose(r, pearson(x, (7, 7), y, (14, 14), (14, 14)), atol=tolerance)


CASE = ((4, 4), (6, 5), (6, 5))


@pytest.fixture(scope="module")
def maps() -> tuple[Tensor, Tensor]:
    return make_maps(20, CASE[0], 6, 1), make_maps(20, CASE[1], 7, 2)


def test_positive_affine_changes_of_a_unit_change_nothing(maps: tuple[Tensor, Tensor]) -> None:
    x, y = maps
    plain = correlate(x, CASE[0], y, *CASE[1:])
    spread = torch.linspace(0.1, 30, x.shape[2])
    np.testing.assert_allclose(correlate(x * spread + 5, CASE[0], y, *CASE[1:]), plain, atol=1e-5)
    np.testing.assert_allclose(correlate(-x, CASE[0], y, *CASE[1:]), -plain, atol=1e-6)


def test_a_mean_of_a_thousand_sds_costs_no_precision() -> None:
    x, y = make_maps(20, (4, 4), 6, 1), make_maps(20, (6, 5), 7, 2)
    x = x / x.std((0, 1)) * 1.0
    x = x - x.mean((0, 1)) + 1000
    np.testing.assert_allclose(correlate(x, (4, 4), y, *CASE[1:]), pearson(x, (4, 4), y, *CASE[1:]), atol=1e-6)


def test_neither_the_order_of_images_nor_chunks_matter(maps: tuple[Tensor, Tensor]) -> None:
    x, y = maps
    plain = correlate(x, CASE[0], y, *CASE[1:], chunk=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for chunk in (1, 3, 7):
        np.testing.assert_allclose(correlate(x[order], CASE[0], y[order], *CASE[1:], chunk=chunk), plain, atol=1e-6)


def test_tiles_give_what_the_whole_gives(maps: tuple[Tensor, Tensor]) -> None:
    x, y = maps
    whole = correlate(x, CASE[0], y, *CASE[1:])
    for rows, cols in ((slice(0, 2), slice(3, 7)), (slice(2, 6), slice(0, 3))):
        np.testing.assert_allclose(
            correlate(x[..., rows], CASE[0], y[..., cols], *CASE[1:]), whole[rows, cols], atol=1e-6
        )


def test_the_shift_is_free(maps: tuple[Tensor, Tensor]) -> None:
    x, y = maps
    products = Products(Crossing(*CASE), x.shape[2], y.shape[2])
    pilot_x, pilot_y = scale_of(x[:4]), scale_of(y[:4])
    products.add(standardised(x, pilot_x)[0], standardised(y, pilot_y)[0])
    np.testing.assert_allclose(products.correlations().numpy(), correlate(x, CASE[0], y, *CASE[1:]), atol=2e-6)


def test_swapping_the_members_transposes_and_a_unit_agrees_with_itself(maps: tuple[Tensor, Tensor]) -> None:
    x, y = maps
    there, back = correlate(x, CASE[0], y, *CASE[1:]), correlate(y, CASE[1], x, CASE[0], CASE[2])
    np.testing.assert_allclose(there, back.T, atol=1e-6)
    for precision in ("fp32", "fp16"):
        own = correlate(x, CASE[0], x, CASE[0], CASE[2], precision)  # type: ignore[arg-type]
        np.testing.assert_allclose(np.diag(own), 1, atol=1e-6 if precision == "fp32" else 1e-4)
        assert np.abs(own).max() <= 1 + 2e-4


def test_constant_units_have_no_correlation(maps: tuple[Tensor, Tensor]) -> None:
    x, y = (some.clone() for some in maps)
    x[..., 2], y[..., 0] = 3.7, 0
    r = correlate(x, CASE[0], y, *CASE[1:])
    dead = np.isneginf(r)
    assert dead[2].all() and dead[:, 0].all() and dead.sum() == 7 + 6 - 1
    assert np.isfinite(r[~dead]).all()


def test_a_unit_that_is_constant_on_a_smaller_canonical_grid_only_has_no_correlation_either() -> None:
    x = make_maps(6, (9, 9), 3)
    x[..., 1] = 0
    x[:, 0, 1] = torch.arange(6.0)  # the corner, which one position in the middle of every three does not see
    r = correlate(x, (9, 9), x, (9, 9), (3, 3))
    assert np.isneginf(r[1]).all() and np.isfinite(r[0, [0, 2]]).all()


def test_absolute_correlations_still_know_the_constant_units(maps: tuple[Tensor, Tensor]) -> None:
    x, y = (some.clone() for some in maps)
    x[..., 2] = 3.7
    products = Products(Crossing(*CASE), x.shape[2], y.shape[2])
    products.add(standardised(x, scale_of(x))[0], standardised(y, scale_of(y))[0])
    r = products.correlations(absolute=True).numpy()
    np.testing.assert_allclose(
        np.delete(r, 2, 0), np.abs(np.delete(correlate(x, CASE[0], y, *CASE[1:]), 2, 0)), atol=1e-6
    )
    assert np.isneginf(r[2]).all()


def test_many_chunks_are_added_in_blocks(maps: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = maps
    plain = correlate(x, CASE[0], y, *CASE[1:], chunk=1)
    monkeypatch.setattr(accumulate, "CHUNKS", 3)
    np.testing.assert_allclose(correlate(x, CASE[0], y, *CASE[1:], chunk=1), plain, atol=1e-6)


def test_correlations_are_taken_once_and_from_images(maps: tuple[Tensor, Tensor]) -> None:
    x, y = maps
    products = Products(Crossing(*CASE), x.shape[2], y.shape[2])
    with pytest.raises(ValueError, match="0 samples"):
        products.correlations()
    products.add(x, y)
    products.correlations()
    with pytest.raises(ValueError, match="make new products"):
        products.add(x, y)


def test_maps_of_other_images_or_units_are_refused(maps: tuple[Tensor, Tensor]) -> None:
    x, y = maps
    products = Products(Crossing(*CASE), x.shape[2], y.shape[2])
    with pytest.raises(ValueError, match="equal images"):
        products.add(x[:3], y[:4])
    with pytest.raises(ValueError, match=r"expected units \(6, 7\)"):
        products.add(x[..., :3], y)
