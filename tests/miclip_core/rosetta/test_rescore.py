"""Exact correlations of candidate pairs, against numpy.corrcoef, and what is cut from them."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from miclip_core.rosetta import rescore
from miclip_core.rosetta.crossing import Crossing
from miclip_core.rosetta.grids import Grid
from miclip_core.rosetta.rescore import Rescorer, cut
from miclip_core.rosetta.standardise import Scale
from miclip_core.zoo.reducers import Moments
from tests.interpolated_maps import GRIDS, make_maps, pearson

PAIRS = np.array([[0, 1], [0, 6], [1, 1], [3, 0], [3, 2], [3, 4], [5, 5]], np.int32)


def scale_of(x_BPU: Tensor) -> Scale:
    moments = Moments()
    moments.add(x_BPU, np.arange(x_BPU.shape[1]), [])
    return Scale.of(moments)


def rescored(x: Tensor, y: Tensor, crossing: Crossing, chunk: int = 5, pairs: np.ndarray = PAIRS) -> np.ndarray:
    rescorer = Rescorer(pairs, crossing, scale_of(x), scale_of(y))
    for i in range(0, len(x), chunk):
        rescorer.add(x[i : i + chunk], y[i : i + chunk])
    return rescorer.correlations()


@pytest.mark.parametrize("a, b, target", GRIDS)
def test_pairs_are_rescored_to_the_last_digits(a: Grid, b: Grid, target: Grid) -> None:
    x, y = make_maps(12, a, 6, 1, heavy=True), make_maps(12, b, 7, 2, heavy=True)
    want = pearson(x, a, y, b, target)[PAIRS[:, 0], PAIRS[:, 1]]
    np.testing.assert_allclose(rescored(x, y, Crossing(a, b, target)), want, atol=1e-12)


CASE = Crossing((4, 4), (6, 5), (6, 5))


@pytest.fixture(scope="module")
def maps() -> tuple[Tensor, Tensor]:
    return make_maps(20, CASE.a, 6, 1), make_maps(20, CASE.b, 7, 2)


def test_neither_chunks_nor_slices_matter(maps: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = rescored(*maps, CASE, chunk=20)
    np.testing.assert_allclose(rescored(*maps, CASE, chunk=3), plain, atol=1e-13)
    monkeypatch.setattr(rescore, "SLICE", 2)
    np.testing.assert_allclose(rescored(*maps, CASE, chunk=20), plain, atol=1e-13)


def test_shards_of_images_merge_to_the_whole(maps: tuple[Tensor, Tensor]) -> None:
    x, y = maps
    scales = scale_of(x), scale_of(y)
    first, second = (Rescorer(PAIRS, CASE, *scales) for _ in range(2))
    first.add(x[:8], y[:8])
    second.add(x[8:], y[8:])
    first.merge(second.state())
    np.testing.assert_allclose(first.correlations(), rescored(x, y, CASE), atol=1e-13)
    with pytest.raises(ValueError, match="same pairs"):
        first.merge(Rescorer(PAIRS[:2], CASE, *scales).state())


def test_equal_maps_have_equal_bits_and_a_unit_agrees_with_itself(maps: tuple[Tensor, Tensor]) -> None:
    x = maps[0].clone()
    x[..., 4] = x[..., 1]
    pairs = np.array([[0, 1], [0, 4], [1, 1], [1, 4]])
    r = rescored(x, x, Crossing(CASE.a, CASE.a, CASE.a), pairs=pairs)
    assert r[0] == r[1] and r[2] == r[3]
    assert abs(r[2] - 1) < 1e-14


def test_constant_units_are_nan(maps: tuple[Tensor, Tensor]) -> None:
    x, y = (some.clone() for some in maps)
    x[..., 3], y[..., 5] = 7.0, 0.1
    assert np.isnan(rescored(x, y, CASE)).tolist() == [False, False, False, True, True, True, True]


def test_pairs_out_of_order_and_other_maps_are_refused(maps: tuple[Tensor, Tensor]) -> None:
    scales = scale_of(maps[0]), scale_of(maps[1])
    for wrong in (PAIRS[::-1], np.array([[0, 7]]), np.array([[0, 1], [0, 1]])):
        with pytest.raises(ValueError, match="ascending"):
            Rescorer(wrong, CASE, *scales)
    with pytest.raises(ValueError, match="equal images"):
        Rescorer(PAIRS, CASE, *scales).add(maps[0][:2], maps[1][:3])
    with pytest.raises(ValueError, match="0 samples"):
        Rescorer(PAIRS, CASE, *scales).correlations()


def test_the_nearest_are_cut_by_r_then_by_id() -> None:
    candidates = np.array([[7, 2, 9, 4]])
    found = cut(candidates, np.array([[0.5, 0.7, 0.7 + 4e-10, 0.1]]), 3, np.array([0.05]), 1e-3)
    assert found.ids.tolist() == [[2, 9, 7]]  # 0.7 and 0.7 + 4e-10 are equal to nine decimals
    assert found.places.tolist() == [[1, 2, 0]]
    assert found.r.tolist() == [[0.7, 0.7 + 4e-10, 0.5]]


def test_a_unit_is_exact_where_the_last_candidate_is_well_below_the_kth() -> None:
    candidates, r = np.array([[0, 1, 2]] * 4), np.array([[0.9, 0.5, 0.4]] * 4)
    last = np.array([0.4, 0.4999, 0.49, -np.inf])
    assert cut(candidates, r, 2, last, 2e-4).exact.tolist() == [True, False, True, True]


def test_a_list_that_is_not_full_is_exact_and_ends_with_none() -> None:
    found = cut(
        np.array([[3, -1, -1], [-1, -1, -1]]),
        np.array([[0.2, np.nan, np.nan], [np.nan] * 3]),
        2,
        np.full(2, -np.inf),
        1e-3,
    )
    assert found.ids.tolist() == [[3, -1], [-1, -1]]
    assert found.places.tolist() == [[0, -1], [-1, -1]]
    np.testing.assert_array_equal(found.r, [[0.2, np.nan], [np.nan, np.nan]])
    assert found.exact.all()


def test_by_absolute_value_the_strongest_opposite_comes_first() -> None:
    candidates, r = np.array([[0, 1, 2]]), np.array([[0.5, -0.8, -0.2]])
    assert cut(candidates, r, 2, np.array([0.2]), 1e-3, absolute=True).ids.tolist() == [[1, 0]]
    assert cut(candidates, r, 2, np.array([0.2]), 1e-3, absolute=True).r.tolist() == [[-0.8, 0.5]]
    assert cut(candidates, r, 2, np.array([0.2]), 1e-3).ids.tolist() == [[0, 2]]


def test_more_neighbours_than_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to 3"):
        cut(np.zeros((1, 3), int), np.zeros((1, 3)), 4, np.zeros(1), 1e-3)
