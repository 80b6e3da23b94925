"""Silhouettes and purities against scikit-learn, loops over pairs, and all labellings of a handful of units."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from miclip_core.evaluate import geometry
from miclip_core.evaluate.geometry import group_units, lay_out, measure_geometry, nearest


def clusters(sizes: list[int], width: int, spread: float, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Points around one random centre per group."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rows = rng.normal(size=(len(sizes), width))[labels] + spread * rng.normal(size=(len(labels), width))
    order = rng.permutation(len(labels))
    return torch.from_numpy(rows[order]).float(), labels[order]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / a.double().norm() / b.double().norm())


# ---------------------------------------------------------------- groups


def test_concepts_of_no_or_several_groups_are_left_out_and_named() -> None:
    localised = {"cat": [4, 2], "dog": [2, 9], "hen": [1], "truck": [7, 9], "rock": [3], "robot": [8]}
    groups = {"mammal": ["cat", "dog", "robot", "yak"], "vehicle": {"truck", "robot"}, "bird": ["hen"]}
    found = group_units(localised, groups)
    assert found.groups == ("mammal", "vehicle", "bird")
    assert dict(zip(found.units.tolist(), found.labels.tolist())) == {1: 2, 2: 0, 4: 0, 7: 1}
    assert found.units.tolist() == sorted(found.units.tolist())
    assert (found.ungrouped, found.ambiguous, found.absent, found.shared) == (("rock",), ("robot",), ("yak",), (9,))


def test_no_group_leaves_no_unit() -> None:
    found = group_units({"a": [1]}, {})
    assert len(found.units) == len(found.labels) == 0 and found.ungrouped == ("a",)


# ---------------------------------------------------------------- neighbours


def test_neighbours_equal_a_loop_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "_BLOCK", 7)
    rows = torch.nn.functional.normalize(torch.randn(30, 5, generator=torch.Generator().manual_seed(0)))
    for unit, found in enumerate(nearest(rows, 4).tolist()):
        others = [other for other in range(30) if other != unit]
        assert found == sorted(sorted(others, key=lambda other: -cosine(rows[unit], rows[other]))[:4])


def test_of_equal_neighbours_the_lower_numbers_are_taken() -> None:
    rows = torch.eye(4)[[0, 1, 0, 2, 0, 1]]
    assert nearest(rows, 1)[:, 0].tolist() == [2, 5, 0, 0, 0, 1]
    assert nearest(rows, 3).tolist() == [[1, 2, 4], [0, 2, 5], [0, 1, 4], [0, 1, 2], [0, 1, 2], [0, 1, 2]]


def test_purity_is_the_share_of_neighbours_of_the_same_group() -> None:
    """On a circle at 0, 10, 25, 90, 100, 130 degrees; 25 is labelled with the far ones."""
    angle = torch.deg2rad(torch.tensor([0.0, 10, 25, 90, 100, 130]))
    rows = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([[1.0], [2], [3], [4], [5], [6]])
    found = measure_geometry(rows, np.array([0, 0, 1, 1, 1, 1]), neighbours=2, permutations=10)
    # neighbours: 0 -> 10, 25; 10 -> 0, 25; 25 -> 10, 0; 90 -> 100, 130; 100 -> 90, 130; 130 -> 100, 90
    assert found.purity == pytest.approx((1 + 1 + 0 + 2 + 2 + 2) / 12)
    assert found.chance == pytest.approx((2 * 1 + 4 * 3) / (6 * 5))


def test_chance_is_the_mean_over_all_labellings() -> None:
    rows, _ = clusters([4, 3], 6, 1.0)
    purities = []
    for chosen in itertools.combinations(range(7), 3):
        labels = np.isin(np.arange(7), chosen).astype(int)
        found = measure_geometry(rows, labels, neighbours=2, permutations=0)
        purities.append(found.purity)
    assert np.mean([p for p in purities if p is not None]) == pytest.approx(found.chance)


# ---------------------------------------------------------------- silhouette


def silhouette_by_pairs(rows: Tensor, labels: np.ndarray) -> float:
    """Every distance of every pair, as Rousseeuw defines it."""
    values = []
    for i, own in enumerate(labels):
        mean = {
            group: np.mean([1 - cosine(rows[i], rows[j]) for j in np.flatnonzero(labels == group) if j != i])
            for group in set(labels.tolist())
            if (labels == group).sum() > (group == own)
        }
        if own not in mean:
            values.append(0.0)
            continue
        a, b = mean.pop(own), min(mean.values())
        values.append((b - a) / max(a, b))
    return float(np.mean(values))


@pytest.mark.parametrize(("sizes", "spread"), [([10, 12], 0.5), ([5, 1, 7, 2], 1.0), ([20, 20, 20], 3.0)])
def test_silhouettes_equal_those_of_pairs_and_of_scikit_learn(sizes: list[int], spread: float) -> None:
    rows, labels = clusters(sizes, 8, spread)
    found = measure_geometry(rows, labels, permutations=5).silhouette
    assert found == pytest.approx(silhouette_by_pairs(rows, labels), abs=1e-6)
    assert found == pytest.approx(silhouette_score(rows.double().numpy(), labels, metric="cosine"), abs=1e-6)


def test_neither_length_nor_rotation_nor_order_of_units_matters() -> None:
    rows, labels = clusters([8, 9, 10], 12, 0.8)
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    order = torch.randperm(27, generator=generator)
    moved = (rows * torch.rand(27, 1, generator=generator).add(0.1)) @ rotation
    a, b = (
        measure_geometry(*given, neighbours=5, permutations=20)
        for given in ((rows, labels), (moved[order], 5 - labels[order.numpy()]))
    )
    assert (a.silhouette, a.purity, a.chance) == pytest.approx((b.silhouette, b.purity, b.chance), abs=1e-6)


def test_units_that_are_all_alike_have_no_silhouette_to_speak_of() -> None:
    found = measure_geometry(torch.full((6, 7), 0.3), np.array([0, 0, 0, 1, 1, 1]), permutations=20)
    assert found.silhouette == 0 and found.silhouette_p == 1


# ---------------------------------------------------------------- permutations


def test_clusters_are_beyond_chance_and_labels_at_random_are_not() -> None:
    rows, labels = clusters([20, 20, 20], 16, 0.5)
    found = measure_geometry(rows, labels, permutations=200)
    assert found.purity == 1 and found.purity_p == found.silhouette_p == 1 / 201
    shuffled = measure_geometry(rows, np.random.default_rng(1).permutation(labels), permutations=200)
    assert shuffled.purity_p is not None and shuffled.purity_p > 0.05
    assert shuffled.silhouette_p is not None and shuffled.silhouette_p > 0.05


def test_p_values_come_near_those_of_all_labellings() -> None:
    """Of the 70 ways of handing out labels four and four, those that do as well as the given one."""
    rows, labels = clusters([4, 4], 3, 1.2, seed=3)
    purities, silhouettes = [], []
    for chosen in itertools.combinations(range(8), 4):
        other = np.isin(np.arange(8), chosen).astype(int)
        purities.append(measure_geometry(rows, other, neighbours=2, permutations=0).purity)
        silhouettes.append(silhouette_by_pairs(rows, other))
    found = measure_geometry(rows, labels, neighbours=2, permutations=3000)
    as_pure = np.mean([purity >= found.purity for purity in purities])
    as_tight = np.mean([value >= found.silhouette - 1e-6 for value in silhouettes])
    assert 0.02 < as_pure < 0.9 and 0.02 < as_tight < 0.9
    assert found.purity_p == pytest.approx(as_pure, abs=0.03)
    assert found.silhouette_p == pytest.approx(as_tight, abs=0.03)


def test_permutations_come_from_the_seed_and_not_from_how_many_are_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, labels = clusters([6, 6], 4, 2.0)
    whole = measure_geometry(rows, labels, permutations=50, seed=1)
    other = measure_geometry(rows, labels, permutations=50, seed=2)
    monkeypatch.setattr(geometry, "_CELLS", 100)
    assert measure_geometry(rows, labels, permutations=50, seed=1) == whole
    assert (other.purity_p, other.silhouette_p) != (whole.purity_p, whole.silhouette_p)


# ---------------------------------------------------------------- what has no figure


def test_units_without_a_direction_are_left_out_of_everything() -> None:
    rows, labels = clusters([5, 6], 4, 1.0)
    more = torch.cat([rows[:3], torch.zeros(1, 4), rows[3:], torch.full((1, 4), torch.nan)])
    known = np.array([*labels[:3], 7, *labels[3:], 0])
    assert measure_geometry(more, known, permutations=20) == measure_geometry(rows, labels, permutations=20)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], []])
def test_one_group_and_groups_of_one_have_no_figures(labels: list[int]) -> None:
    found = measure_geometry(torch.eye(3)[: len(labels)], np.array(labels, int))
    assert found.units == len(labels) and found.purity is found.silhouette is found.purity_p is None


def test_few_units_have_fewer_neighbours() -> None:
    rows, labels = clusters([2, 2], 4, 1.0)
    assert measure_geometry(rows, labels, neighbours=10, permutations=5).neighbours == 3


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels for 3 units"):
        measure_geometry(torch.eye(3), np.array([0, 1]))
    with pytest.raises(ValueError, match="0 neighbours"):
        measure_geometry(torch.eye(3), np.array([0, 1, 1]), neighbours=0)


# ---------------------------------------------------------------- layout


def test_a_layout_keeps_clusters_together_and_has_no_place_for_nothing() -> None:
    rows, labels = clusters([12, 12], 10, 0.2)
    rows = torch.cat([rows * torch.rand(24, 1), torch.zeros(1, 10)])
    places = lay_out(rows, seed=3, perplexity=5)
    assert places.shape == (25, 2) and places.dtype == np.float32 and np.isnan(places[24]).all()
    assert silhouette_score(places[:24], labels) > 0.5
    assert np.array_equal(places, lay_out(rows, seed=3, perplexity=5), equal_nan=True)


def test_small_and_degenerate_sets_have_a_layout_and_less_than_four_units_none() -> None:
    assert np.isfinite(lay_out(torch.eye(4))).all()
    assert np.isfinite(lay_out(torch.ones(6, 3))).all()
    with pytest.raises(ValueError, match="3 of 5 units have a direction; a layout needs at least 4"):
        lay_out(torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0], [0, 0]]))
