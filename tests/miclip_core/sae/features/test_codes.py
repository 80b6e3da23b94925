"""Sorting, cutting and joining codes against a dense array."""

from itertools import pairwise

import numpy as np
import pytest

from miclip_core.sae.features.codes import (
    FeatureCodes,
    by_image,
    join_codes,
    means,
    order_by_value,
    reduce_segments,
    sort_codes,
)
from miclip_core.sae.features.top import code_maps, top_images

IMAGES, POSITIONS, WIDTH = 12, 5, 9


def make_dense(seed: int = 0, signed: bool = False, images: int = IMAGES) -> np.ndarray:
    """Codes [images, positions, features] with ties, an always-on feature (7), a dead one (4) and idle images."""
    random = np.random.default_rng(seed)
    dense = random.integers(1, 6, (images, POSITIONS, WIDTH)).astype(np.float32) / 4
    dense *= random.random(dense.shape) < 0.3
    if signed:
        dense *= random.choice([-1, 1], dense.shape)
    dense[..., 4] = 0
    dense[..., 7] = random.integers(1, 4, dense.shape[:2])
    dense[::5, :, :4] = 0
    return dense


def from_dense(dense: np.ndarray) -> FeatureCodes:
    """The codes of images x positions x features."""
    image, token, feature = np.nonzero(dense)
    return sort_codes(feature, dense[image, token, feature], image, token, dense.shape[-1])


def to_dense(codes: FeatureCodes, images: int = IMAGES) -> np.ndarray:
    out = np.zeros((images, POSITIONS, codes.width), np.float32)
    out[codes.image, codes.token, codes.feature] = codes.value
    return out


def same(a: FeatureCodes, b: FeatureCodes) -> bool:
    return all(np.array_equal(a.state()[k], b.state()[k]) for k in a.state())


def test_codes_hold_every_nonzero_value_and_are_sorted():
    dense = make_dense(signed=True)
    codes = from_dense(dense)
    assert np.array_equal(to_dense(codes), dense)
    keys = list(zip(codes.feature, codes.image, codes.token, strict=True))
    assert keys == sorted(keys) and len(keys) == np.count_nonzero(dense)


def test_selected_zeros_are_no_codes():
    codes = sort_codes(np.array([1, 0]), np.array([0.0, 2.0]), np.array([0, 0]), np.array([0, 0]), 2)
    assert len(codes) == 1 and codes.offsets.tolist() == [0, 1, 1]


@pytest.mark.parametrize("borders", [[0, 12], [0, 1, 5, 12], [0, 4, 4, 12]])
def test_parts_over_ranges_of_images_join_to_the_whole(borders: list[int]):
    dense = make_dense(1)
    parts = [from_dense(dense[a:b]) for a, b in pairwise(borders)]
    assert same(join_codes(parts, borders[:-1]), from_dense(dense))


def test_a_cut_holds_its_features_and_a_state_comes_back():
    codes = from_dense(make_dense())
    cut = codes.cut(2, 6).cut(3, 6)
    assert cut.first == 3 and np.array_equal(to_dense(cut), make_dense()[..., 3:6])
    assert same(FeatureCodes.from_state(cut.state()), cut)


def test_chunks_cover_every_feature_once_within_their_bounds():
    codes = from_dense(make_dense())
    chunks = list(codes.chunks(entries=20, features=3))
    assert [c.first for c in chunks] == np.cumsum([0, *(c.width for c in chunks)])[:-1].tolist()
    assert sum(c.width for c in chunks) == WIDTH and sum(len(c) for c in chunks) == len(codes)
    assert all(c.width <= 3 and (len(c) <= 20 or c.width == 1) for c in chunks)
    assert max(len(c) for c in chunks) == IMAGES * POSITIONS  # the feature that is always on stands alone


@pytest.mark.parametrize("signed", [False, True])
def test_images_hold_the_largest_code_and_its_first_position_and_the_sum(signed: bool):
    dense = make_dense(2, signed)
    images = by_image(from_dense(dense), POSITIONS)
    found = {}
    for e, key in enumerate(zip(images.feature.tolist(), images.image.tolist(), strict=True)):
        found[key] = (images.largest[e], images.token[e], images.total[e])
    for feature in range(WIDTH):
        for image in range(IMAGES):
            column = dense[image, :, feature]
            if not column.any():
                assert (feature, image) not in found
                continue
            largest, token, total = found[feature, image]
            assert largest == column.max() and total == column.sum(dtype=np.float64)
            nonzero = np.flatnonzero(column)
            assert token == nonzero[column[nonzero].argmax()]


def test_no_codes_at_all_give_empty_summaries():
    images = by_image(from_dense(np.zeros((3, POSITIONS, 4), np.float32)), POSITIONS)
    assert (
        images.width == 4
        and len(images.image) == 0
        and len(top_images(images, images.largest, np.arange(3), 2).entry) == 0
    )


def test_segments_without_values_get_the_stated_one():
    offsets = np.array([0, 0, 2, 2, 3, 3])
    assert reduce_segments(np.add, np.array([1.0, 2.0, 4.0]), offsets, -1.0).tolist() == [-1, 3, -1, 4, -1]


def test_top_images_go_by_value_then_id_and_leave_out_idle_images():
    dense = make_dense(3, signed=True)
    ids = [f"{n:02d}" for n in np.random.default_rng(0).permutation(IMAGES)]
    codes = from_dense(dense)
    images = by_image(codes, POSITIONS)
    id_order = np.argsort(np.argsort(ids))
    top = top_images(images, images.largest, id_order, 4)
    maps = code_maps(codes, images, top, range(1, POSITIONS))
    for feature in range(WIDTH):
        largest = dense[..., feature].max(1)
        expected = sorted((i for i in range(IMAGES) if largest[i] > 0), key=lambda i: (-largest[i], ids[i]))[:4]
        rows = np.flatnonzero(top.feature == feature)
        assert images.image[top.entry[rows]].tolist() == expected
        assert top.rank[rows].tolist() == list(range(len(expected)))
        for row, image in zip(rows, expected, strict=True):
            assert np.array_equal(maps[row], dense[image, 1:, feature])


def test_top_images_by_mean_prefer_what_is_active_all_over_and_leave_out_idle_images_too():
    dense = make_dense(4, signed=True)
    images = by_image(from_dense(dense), POSITIONS)
    id_order = np.arange(IMAGES)[::-1]
    top = top_images(images, means(images, POSITIONS), id_order, 3)
    differ = False
    for feature in range(WIDTH):
        mean, largest = dense[..., feature].mean(1, dtype=np.float64).astype(np.float32), dense[..., feature].max(1)
        active = [i for i in range(IMAGES) if largest[i] > 0]
        expected = sorted(active, key=lambda i: (-mean[i], -i))[:3]
        assert images.image[top.entry[top.feature == feature]].tolist() == expected
        differ |= expected != sorted(active, key=lambda i: (-largest[i], -i))[:3]
    assert differ


def test_values_of_any_sign_are_ordered_inside_their_feature():
    random = np.random.default_rng(0)
    value = np.exp2(random.normal(0, 40, 500)).astype(np.float32) * random.choice([-1, 1], 500)
    value = np.concatenate([value, [-np.inf, np.inf, 1.0, 1.0, -1.0]]).astype(np.float32)
    feature = np.sort(random.integers(0, 4, len(value)))
    assert np.array_equal(order_by_value(feature, value), np.lexsort((value, feature)))


def test_a_bucket_of_no_features_is_cut_and_joined_like_any_other():
    codes = from_dense(make_dense())
    empty = codes.cut(5, 5)
    joined = join_codes([empty, FeatureCodes.from_state(empty.state())], [0, IMAGES])
    assert joined.width == 0 and len(joined) == 0 and list(joined.chunks(10, 10)) == []
