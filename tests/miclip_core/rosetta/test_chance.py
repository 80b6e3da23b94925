"""Correlations that place alone explains, and what units have above it where images do not belong together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from miclip_core.rosetta.accumulate import Products
from miclip_core.rosetta.chance import ShiftedProducts, above_place
from miclip_core.rosetta.crossing import Crossing
from tests.interpolated_maps import interpolated

IMAGES, UNITS = 240, 150


def maps(seed: int, side: int, placed: int) -> Tensor:
    """Independent maps [B, P, U], of which the first `placed` units also answer to a place of their own, whatever is shown."""
    made = torch.Generator().manual_seed(seed)
    rows = torch.randn(IMAGES, side * side, UNITS, generator=made)
    places = torch.Generator().manual_seed(7)
    at = torch.randint(0, 4, (placed,), generator=places)  # quarters of the image, the same for every member
    quarter = torch.tensor([(i // side >= side // 2) * 2 + (i % side >= side // 2) for i in range(side * side)])
    rows[..., :placed] += 3.0 * (quarter[:, None] == at)
    return rows


def products(a: Tensor, b: Tensor, crossing: Crossing) -> tuple[Products, ShiftedProducts]:
    """Of the same images, and of images shifted by half; added in uneven chunks."""
    true, null = Products(crossing, UNITS, UNITS), ShiftedProducts(crossing, UNITS, UNITS)
    for some in torch.arange(IMAGES).split(37):
        true.add(a[some], b[some])
        null.add(a[some], b[(some + IMAGES // 2) % IMAGES])
    return true, null


@pytest.mark.parametrize(("side_a", "side_b"), [(4, 4), (4, 8), (6, 4)])
def test_place_is_the_correlation_of_mean_maps(side_a: int, side_b: int) -> None:
    a, b = maps(0, side_a, 20), maps(1, side_b, 20)
    grid = (max(side_a, side_b),) * 2
    _, null = products(a, b, Crossing((side_a,) * 2, (side_b,) * 2, grid))
    x, y = interpolated(a, (side_a,) * 2, grid), interpolated(b, (side_b,) * 2, grid)
    means = [z.reshape(UNITS, IMAGES, -1).mean(1) for z in (x, y)]
    covariance = means[0] @ means[1].T / means[0].shape[1] - np.outer(x.mean(1), y.mean(1))
    expected = covariance / np.outer(x.std(1), y.std(1))
    place = null.place()
    assert place.of_rows(slice(3, 90)).numpy() == pytest.approx(expected[3:90], abs=1e-6)
    rows, columns = torch.tensor([0, 5, 149]), torch.tensor([7, 0, 2])
    assert place.of_pairs(rows, columns).numpy() == pytest.approx(expected[[0, 5, 149], [7, 0, 2]], abs=1e-6)
    assert expected[:20, :20].max() > 0.3 and abs(expected[20:, 20:]).max() < 0.05


def test_buddies_of_independent_units_are_not_above_chance_and_neither_are_those_of_a_place() -> None:
    """The best of 150 draws is held against the best of 150 draws: about one unit in a thousand is above by chance, not one in two."""
    above, units = 0, 0
    for seed in range(6):
        true, null = products(maps(2 * seed, 4, 40), maps(2 * seed + 1, 4, 40), Crossing((4, 4), (4, 4), (4, 4)))
        place = null.place().of_rows(slice(0, UNITS))
        by_chance, found = (above_place(p.correlations(), place) for p in (null, true))
        best = torch.cat([by_chance.amax(1), by_chance.amax(0)])
        limit = float(np.quantile(best.numpy(), 0.999))
        above += int((found.amax(1) > limit).sum())
        units += UNITS
        assert float(place[:40, :40].max()) > 0.3  # which r itself would be, were place not known
    assert above / units < 0.02


def test_shared_units_are_above_chance() -> None:
    a, b = maps(0, 4, 40), maps(1, 4, 40)
    b[..., 100:110] = 0.4 * a[..., 100:110] + b[..., 100:110]
    true, null = products(a, b, Crossing((4, 4), (4, 4), (4, 4)))
    place = null.place().of_rows(slice(0, UNITS))
    by_chance, found = (above_place(p.correlations(), place) for p in (null, true))
    limit = float(np.quantile(torch.cat([by_chance.amax(1), by_chance.amax(0)]).numpy(), 0.999))
    above = {(i, j) for i, j in (found > limit).nonzero().tolist()}
    assert {(unit, unit) for unit in range(100, 110)} <= above and len(above) < 20


def test_a_unit_that_is_constant_has_no_place() -> None:
    a, b = maps(0, 4, 4), maps(1, 4, 4)
    a[..., 3] = 0
    _, null = products(a, b, Crossing((4, 4), (4, 4), (4, 4)))
    assert (null.place().of_rows(slice(3, 4)) == 0).all()


def test_nothing_is_known_of_places_before_an_image_was_taken() -> None:
    with pytest.raises(ValueError, match="no image was taken"):
        ShiftedProducts(Crossing((4, 4), (4, 4), (4, 4)), 3, 3).place()
