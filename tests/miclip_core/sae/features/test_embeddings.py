"""Clarity, chance clarity and monosemanticity against loops over pairs and over all subsets."""

from itertools import combinations

import numpy as np
import pytest

from miclip_core.sae.features import embeddings
from miclip_core.sae.features.embeddings import PairCosine, RandomPairs, in_blocks


def make(n: int, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    raw = np.random.default_rng(1).normal(0.5, 1, (n, width)).astype(np.float32)
    double = raw.astype(np.float64)
    return raw, double / np.linalg.norm(double, axis=1, keepdims=True)


def run(pieces: list[np.ndarray], sets: PairCosine) -> np.ndarray:
    for number, block in enumerate(in_blocks(pieces)):
        sets.add(number, block)
    return sets.mean()


def test_weighted_mean_cosine_equals_a_loop_over_pairs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embeddings, "BLOCK", 4)
    raw, unit = make(11)
    weights = np.random.default_rng(2).random((4, 11)) * (np.random.default_rng(3).random((4, 11)) < 0.6)
    weights[2] = 0
    weights[3] = 0
    weights[3, 6] = 2.0
    group, image = np.nonzero(weights)
    found = run([raw[:3], raw[3:3], raw[3:]], PairCosine(group, image, weights[group, image], 4))
    for g in range(2):
        pairs = [(weights[g, i] * weights[g, j], unit[i] @ unit[j]) for i in range(11) for j in range(11) if i != j]
        assert found[g] == pytest.approx(sum(w * c for w, c in pairs) / sum(w for w, _ in pairs), abs=1e-12)
    assert np.isnan(found[2:]).all()  # no image, one image


def test_results_do_not_depend_on_how_images_arrive_or_on_the_other_sets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embeddings, "BLOCK", 8)
    raw, _ = make(50, 17)
    random = np.random.default_rng(4)
    weights = random.random((6, 50)) * (random.random((6, 50)) < 0.5)
    group, image = np.nonzero(weights)
    whole = run([raw], PairCosine(group, image, weights[group, image], 6))
    cut = run([raw[:13], raw[13:37], raw[37:]], PairCosine(group, image, weights[group, image], 6))
    assert np.array_equal(whole, cut)
    for g in range(6):
        (image,) = np.nonzero(weights[g])
        assert run([raw], PairCosine(np.zeros_like(image), image, weights[g, image], 1))[0] == whole[g]


def test_without_embeddings_nothing_is_known():
    assert np.isnan(PairCosine(np.array([0]), np.array([0]), np.array([1.0]), 2).mean()).all()


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_chance_clarity_equals_the_mean_and_spread_over_all_subsets(n: int):
    raw, unit = make(7)
    chance = RandomPairs()
    for block in in_blocks([raw]):
        chance.add(block)
    cosine = unit @ unit.T
    every = [np.mean([cosine[i, j] for i, j in combinations(some, 2)]) for some in combinations(range(7), n)]
    assert chance.clarity(n) == pytest.approx((np.mean(every), np.std(every)), abs=1e-7)
    assert np.isnan(chance.clarity(8)).all() and np.isnan(chance.clarity(1)).all()


def test_images_without_an_embedding_are_left_out():
    raw, _ = make(6)
    gap = np.insert(raw, 2, 0, axis=0)
    everyone = np.arange(7)
    with_gap = run([gap], PairCosine(np.zeros(7, int), everyone, np.ones(7), 1))
    without = run([raw], PairCosine(np.zeros(6, int), everyone[:6], np.ones(6), 1))
    assert with_gap[0] == pytest.approx(without[0], abs=1e-14)
    chances = []
    for vectors in (gap, raw):
        chance = RandomPairs()
        for block in in_blocks([vectors]):
            chance.add(block)
        chances.append(chance.clarity(3))
    assert chances[0] == chances[1]
