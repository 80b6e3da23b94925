"""Clusters that were planted, scikit-learn's sum of squares, and words counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.cluster import KMeans

from miclip_core.explain.clusters import cluster_texts, name_topics, sample_members

RNG = np.random.default_rng(0)
SIZES = (40, 25, 25, 10)
PLANTED = np.repeat(np.arange(4), SIZES)
ROWS = np.eye(4, 16)[PLANTED] + RNG.normal(0, 0.05, (100, 16))


def test_planted_clusters_are_found_and_numbered_by_size() -> None:
    order = RNG.permutation(100)
    labels = cluster_texts(ROWS[order], k=4)
    assert np.bincount(labels).tolist() == list(SIZES)
    assert (labels[PLANTED[order] == 0] == 0).all() and (labels[PLANTED[order] == 3] == 3).all()
    first = [int(np.flatnonzero(labels == c)[0]) for c in (1, 2)]
    assert first[0] < first[1], "of two of one size the one that comes first has the lower number"


def test_the_sum_of_squares_is_that_of_the_best_restart_and_a_seed_repeats_it() -> None:
    rows = RNG.normal(size=(80, 5))
    labels = cluster_texts(rows, k=6, restarts=10, seed=42)
    squares = sum(((rows[labels == c] - rows[labels == c].mean(0)) ** 2).sum() for c in range(6))
    assert squares == pytest.approx(KMeans(6, n_init=10, random_state=42).fit(rows).inertia_)
    assert np.array_equal(labels, cluster_texts(rows, k=6, restarts=10, seed=42))


@pytest.mark.parametrize("k", [3, 4, 30])
def test_fewer_different_rows_than_clusters_are_a_cluster_each(k: int) -> None:
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    assert cluster_texts(rows, k=k).tolist() == [0, 1, 0, 2]


def test_there_are_never_more_clusters_than_asked_for() -> None:
    rows = np.repeat(RNG.normal(size=(7, 3)), 5, axis=0)
    assert set(cluster_texts(rows, k=5).tolist()) == {0, 1, 2, 3, 4}


def test_nothing_and_what_is_not_finite_are_refused() -> None:
    for rows in (np.zeros((0, 4)), np.array([[np.nan, 1.0]])):
        with pytest.raises(ValueError, match="finite"):
            cluster_texts(rows)


def test_a_topic_is_the_words_with_the_largest_class_based_tf_idf() -> None:
    texts = ["Red red stripes", "A red wall of the image", "Blue stripes", "blue blue dog", "..."]
    labels = np.array([0, 0, 1, 1, 2])
    counts = [{"red": 3, "stripes": 1, "wall": 1}, {"blue": 3, "stripes": 1, "dog": 1}, {}]
    total = {"red": 3, "stripes": 2, "wall": 1, "blue": 3, "dog": 1}
    expected = []
    for count in counts:
        weight = {word: n * math.log(1 + (10 / 3) / total[word]) for word, n in count.items()}
        expected.append(", ".join(sorted(weight, key=lambda word: (-weight[word], word))))
    assert expected[:2] == ["red, wall, stripes", "blue, dog, stripes"]
    assert name_topics(texts, labels) == [*expected[:2], "..."]
    assert name_topics(texts, labels, words=1) == ["red", "blue", "..."]
    assert name_topics([], np.zeros(0, np.int64)) == []


def test_of_equal_words_the_first_of_the_alphabet_is_the_topic() -> None:
    assert name_topics(["zebra ape"], np.array([0]), words=2) == ["ape, zebra"]


def test_members_are_drawn_from_their_cluster_each_once_and_alike() -> None:
    drawn = sample_members(PLANTED, 1)
    assert len(set(drawn.tolist())) == 20 and (PLANTED[drawn] == 1).all() and (np.diff(drawn) > 0).all()
    assert np.array_equal(sample_members(PLANTED, 1), drawn)
    assert not np.array_equal(sample_members(PLANTED, 1, seed=1), drawn)
    assert sample_members(PLANTED, 3).tolist() == list(range(90, 100))
