"""Reducers against plain numpy, and shards merged in any order against the whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from miclip_core.zoo.reducers import Gram, Moments, Sink, TopK

ROWS = torch.from_numpy(np.random.default_rng(0).normal(3.0, 2.0, (24, 5, 7)).astype(np.float32))  # images, rows, units
IDS = [f"{i * 7919 % 24:032x}" for i in range(24)]
POSITIONS = np.arange(5)


def fill(reducer, part: slice):
    for start in range(part.start, part.stop, 4):
        stop = min(start + 4, part.stop)
        reducer.add(ROWS[start:stop], POSITIONS, IDS[start:stop])
    return reducer


@pytest.mark.parametrize("per_position", [False, True])
def test_moments_equal_numpy_and_merge_exactly(per_position: bool) -> None:
    x = ROWS.numpy().astype(np.float64)
    x = x if per_position else x.reshape(-1, 7)
    whole = fill(Moments(per_position), slice(0, 24))
    merged = fill(Moments(per_position), slice(0, 9))
    merged.merge(fill(Moments(per_position), slice(9, 24)))
    merged.merge(Moments(per_position))
    for moments in (whole, merged, Moments.from_state(merged.state())):
        assert moments.count == len(x)
        np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-13)
        np.testing.assert_allclose(moments.variance, x.var(0), rtol=1e-12)
        np.testing.assert_allclose(moments.sum, x.sum(0), rtol=1e-12)
        assert (moments.min == x.min(0)).all() and (moments.max == x.max(0)).all()


def test_a_large_mean_does_not_cost_the_variance_its_digits() -> None:
    """1e8 + {-1, +1} has variance 1; sums of squares in fp64 would lose it."""
    moments = Moments()
    for _ in range(3):
        moments.add(torch.tensor([[[1e8 - 1]], [[1e8 + 1]]], dtype=torch.float64), np.array([0]), ["a", "b"])
    assert moments.variance.item() == 1.0


def test_moments_per_position_refuse_sampled_positions() -> None:
    with pytest.raises(ValueError, match="same positions"):
        Moments(per_position=True).add(ROWS[:2], np.zeros((2, 5), dtype=int), IDS[:2])


def test_gram_equals_numpy_and_merges() -> None:
    x = ROWS.numpy().astype(np.float64).reshape(-1, 7)
    gram = fill(Gram(), slice(0, 10))
    gram.merge(fill(Gram(), slice(10, 24)))
    gram = Gram.from_state(gram.state())
    np.testing.assert_allclose(gram.gram, x.T @ x, rtol=1e-13)
    np.testing.assert_allclose(gram.sum, x.sum(0), rtol=1e-13)
    assert gram.count == 120


def slow_top(rows: np.ndarray, ids: list[str], k: int) -> list[list[tuple[float, str, int]]]:
    """Sort all images of each unit by (-value, id), the obvious way."""
    found = []
    for unit in range(rows.shape[2]):
        best = [(float(rows[i, :, unit].max()), ids[i], int(rows[i, :, unit].argmax())) for i in range(len(ids))]
        found.append(sorted(best, key=lambda one: (-one[0], one[1]))[:k])
    return found


def as_tuples(top: TopK) -> list[list[tuple[float, str, int]]]:
    return [[(float(v), str(i), int(p)) for v, i, p in zip(*row)] for row in zip(top.values, top.ids, top.positions)]


@pytest.mark.parametrize("k", [1, 5, 24, 40])
def test_top_images_are_exact_with_ties_in_any_order_of_merging(k: int) -> None:
    rows = ROWS.round() / 2  # many equal values
    rows[:, :, 6] = 0.0  # a dead unit: every image ties
    expected = slow_top(rows.numpy(), IDS, k)
    shards = []
    for part in (slice(0, 5), slice(5, 6), slice(6, 24)):
        top = TopK(k)
        for i in range(part.start, part.stop, 3):
            stop = min(i + 3, part.stop)
            top.add(rows[i:stop], POSITIONS, IDS[i:stop])
        shards.append(top)
    for order in itertools.permutations(range(3)):
        merged = TopK(k)
        for number in order:
            merged.merge(TopK.from_state(shards[number].state()))
        assert as_tuples(merged) == expected
    assert [unit[0][1] for unit in expected][6] == min(IDS)


def test_top_images_report_the_sampled_position() -> None:
    top = TopK(1)
    top.add(torch.tensor([[[1.0], [3.0]], [[2.0], [0.0]]]), np.array([[4, 9], [1, 6]]), ["b", "a"])
    assert as_tuples(top) == [[(3.0, "b", 9)]]


def test_a_summary_without_images_is_empty() -> None:
    top = TopK(3)
    assert top.is_empty
    top.add(torch.zeros(1, 1, 2), POSITIONS[:1], ["a"])
    assert not top.is_empty


def test_the_state_of_top_images_names_each_kept_image_once() -> None:
    ids = [f"{i:03d}ü" for i in range(50)]
    rows = torch.arange(50.0)[:, None, None].expand(50, 1, 1000)  # every unit keeps the last two images
    top = TopK(2)
    top.add(rows, np.array([-1]), ids)
    state = top.state()
    assert [name.decode() for name in state["names"]] == ["048ü", "049ü"]
    assert state["codes"].dtype == np.int32 and (state["codes"] == [1, 0]).all()
    assert sum(array.nbytes for array in state.values()) < 3 * 1000 * 2 * 4 + 100
    again = TopK.from_state(state)
    assert again.ids[999].tolist() == ["049ü", "048ü"]
    again.add(torch.full((1, 1, 1000), 48.5), np.array([-1]), ["new"])
    assert again.ids[0].tolist() == ["049ü", "new"]


def test_a_sink_hands_on_every_batch() -> None:
    seen = []
    fill(Sink(lambda rows, positions, ids: seen.append((rows.shape[0], len(ids)))), slice(0, 10))
    assert seen == [(4, 4), (4, 4), (2, 2)]
