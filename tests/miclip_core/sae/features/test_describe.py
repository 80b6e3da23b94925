"""Statistics of features against plain numpy over the dense array, and their independence of how features are cut."""

import numpy as np
import pytest

from miclip_core.sae.features.codes import FeatureCodes, sort_codes
from miclip_core.sae.features.describe import Description, describe

IMAGES, POSITIONS, WIDTH = 40, 6, 7


def make(signed: bool) -> tuple[np.ndarray, FeatureCodes]:
    random = np.random.default_rng(5)
    dense = np.exp2(random.normal(0, 4, (IMAGES, POSITIONS, WIDTH))).astype(np.float32)
    dense *= random.random(dense.shape) < random.random(WIDTH)
    dense[..., 3] = 0
    dense[..., 5] = 1
    if signed:
        dense *= random.choice([-1, 1], dense.shape)
    image, token, feature = np.nonzero(dense)
    return dense, sort_codes(feature, dense[image, token, feature], image, token, WIDTH)


@pytest.mark.parametrize("signed", [False, True])
def test_every_statistic_equals_numpy_on_the_dense_array(signed: bool):
    dense, codes = make(signed)
    found = describe(codes, IMAGES * POSITIONS)
    for f in range(WIDTH):
        everything = dense[..., f].astype(np.float64).ravel()
        active = everything[everything > 0]
        assert found.n_active[f] == len(active)
        assert found.images_active[f] == (dense[..., f] > 0).any(1).sum()
        if len(active):
            expected = [active.mean(), active.std(), active.min(), active.max(), *np.quantile(active, (0.5, 0.9, 0.99))]
            got = [found.mean[f], found.std[f], found.min_active[f], found.max[f], *found.quantiles[f]]
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)
        else:
            assert np.isnan([found.mean[f], found.std[f], found.max[f], *found.quantiles[f]]).all()
        if everything.std() > 0:
            z = (everything - everything.mean()) / everything.std()
            np.testing.assert_allclose([found.skewness[f], found.kurtosis[f]], [(z**3).mean(), (z**4).mean() - 3])
        else:
            assert np.isnan(found.skewness[f]) and np.isnan(found.kurtosis[f])
        edges = 2.0 ** (-16 + np.arange(65) / 2)
        edges[0], edges[-1] = 0, np.inf
        assert np.array_equal(found.histogram[f], np.histogram(active, edges)[0])


def test_a_histogram_bin_is_closed_below_and_open_above():
    value = np.array([1, np.nextafter(np.float32(1), 0), np.sqrt(np.float32(2)), 1.4143, 1e-30, 1e30], np.float32)
    codes = sort_codes(np.zeros(6, int), value, np.arange(6), np.zeros(6, int), 1)
    assert np.flatnonzero(describe(codes, 6).histogram[0]).tolist() == [0, 31, 32, 33, 63]


def test_a_feature_on_everywhere_with_one_value_has_no_shape():
    codes = sort_codes(np.zeros(4, int), np.ones(4), np.arange(4), np.zeros(4, int), 1)
    found = describe(codes, 4)
    assert np.isnan(found.kurtosis[0]) and found.std[0] == 0


def test_one_feature_alone_is_described_bit_for_bit_as_among_others():
    _, codes = make(True)
    whole = vars(describe(codes, IMAGES * POSITIONS))
    pieces: list[Description] = [describe(piece, IMAGES * POSITIONS) for piece in codes.chunks(10, 2)]
    assert len(pieces) > 3
    for name, column in whole.items():
        np.testing.assert_array_equal(column, np.concatenate([getattr(p, name) for p in pieces]), err_msg=name)
