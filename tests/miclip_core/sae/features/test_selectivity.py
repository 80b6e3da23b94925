"""AUROC by counting pairs and best F1 by trying every threshold, over the dense array."""

import numpy as np
import pytest

from miclip_core.sae.features.selectivity import Category, best_of, join_scores, score, sort_entries

ITEMS, WIDTH, VALUES = 60, 6, 4


def make(signed: bool, slots: int, seed: int = 0) -> tuple[np.ndarray, Category]:
    random = np.random.default_rng(seed)
    dense = random.integers(1, 5, (WIDTH, ITEMS)).astype(np.float32) * (random.random((WIDTH, ITEMS)) < 0.5)
    if signed:
        dense *= random.choice([-1, 1], dense.shape)
    dense[2] = 0
    dense[3] = np.arange(1, ITEMS + 1)
    classes = random.integers(-1, VALUES - 1, (ITEMS, slots))  # nobody has the last value
    if slots == 2:
        classes[classes[:, 0] == classes[:, 1], 1] = -1
    return dense, Category("thing", tuple("abcd"), classes)


def entries_of(dense: np.ndarray, items: np.ndarray | None = None):
    feature, item = np.nonzero(dense)
    return sort_entries(feature, dense[feature, item], item if items is None else items[item], len(dense))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("slots", [1, 2])
def test_scores_equal_counting_pairs_and_trying_thresholds(signed: bool, slots: int):
    dense, category = make(signed, slots)
    found = score(entries_of(dense), category)
    has = np.stack([(category.classes == v).any(1) for v in range(VALUES)], 1)
    known = (category.classes >= 0).any(1)
    assert category.n == known.sum() < ITEMS and category.positives.tolist() == has.sum(0).tolist()
    for f in range(WIDTH):
        for v in range(VALUES - 1):
            yes, no = dense[f][has[:, v]], dense[f][known & ~has[:, v]]
            wins = sum((1.0 if a > b else 0.5 if a == b else 0.0) for a in yes for b in no)
            assert found.auroc[f, v] == pytest.approx(wins / len(yes) / len(no), abs=1e-12)
            best = (0.0, np.nan, np.nan, np.nan)
            for t in sorted(set(dense[f][known & (dense[f] > 0)].tolist())):
                hits, predicted = (yes >= t).sum(), (yes >= t).sum() + (no >= t).sum()
                f1 = 2 * hits / (predicted + len(yes))
                if f1 >= best[0] and hits:
                    best = (f1, t, hits / predicted, hits / len(yes))
            got = (found.f1[f, v], found.threshold[f, v], found.precision[f, v], found.recall[f, v])
            np.testing.assert_allclose(got, best, rtol=1e-12)
        assert np.isnan(found.auroc[f, VALUES - 1]) and np.isnan(found.f1[f, VALUES - 1])


def test_a_feature_that_never_fires_is_at_chance_and_one_that_is_the_concept_is_perfect():
    category = Category("x", ("no", "yes"), np.array([[0], [1], [0], [1], [-1]]))
    found = score(entries_of(np.array([[0, 0, 0, 0, 0], [0, 2, 0, 1, 9]], np.float32)), category)
    assert found.auroc.tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert found.f1.tolist() == [[0.0, 0.0], [0.0, 1.0]] and found.threshold[1, 1] == 1.0  # the 9 is left out


def test_zeros_tie_with_each_other_and_nothing_else():
    # by hand: positives 0 0 3, negatives 0 1: (0>0 half, 0<1) twice, 3 beats both = 1 + 2 = 3 of 6 pairs
    category = Category("x", ("p", "n"), np.array([[0], [0], [0], [1], [1]]))
    assert score(entries_of(np.array([[0, 0, 3, 0, 1]], np.float32)), category).auroc[0, 0] == 3 / 6


def test_positions_that_nothing_is_known_of_do_not_count():
    dense, category = make(False, 1)
    shifted = np.arange(ITEMS + 3) - 3  # three prefix positions before the items
    wide = np.concatenate([np.full((WIDTH, 3), 7, np.float32), dense], 1)
    there, here = score(entries_of(wide, shifted), category), score(entries_of(dense), category)
    np.testing.assert_array_equal(there.auroc, here.auroc)
    np.testing.assert_array_equal(there.threshold, here.threshold)


def test_features_are_scored_bit_for_bit_the_same_alone():
    dense, category = make(True, 2, seed=3)
    whole = score(entries_of(dense), category)
    for f in range(WIDTH):
        alone = score(entries_of(dense[f : f + 1]), category)
        for name in ("auroc", "f1", "threshold", "precision", "recall"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(whole, name)[f])


def test_the_best_of_features_and_concepts_are_ranked_ties_to_the_lower_number():
    category = Category("x", ("p", "n"), np.array([[0], [0], [1], [1]]))
    dense = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 2, 0]], np.float32)
    scores = join_scores([score(entries_of(dense), category)])
    of_feature, of_concept = best_of(scores, dense.any(1), per_feature=1, per_concept=2)
    assert of_feature.tolist() == [[0, -1], [-1, -1], [0, -1], [-1, 0]]
    assert of_concept.tolist() == [[0, 1], [-1, -1], [1, -1], [-1, 0]]


def test_rare_concepts_are_not_scored():
    category = Category("x", ("a", "b", "c"), np.array([[0], [1], [1], [2], [2], [2]]))
    found = score(entries_of(np.ones((1, 6), np.float32)), category, least=2)
    assert np.isnan(found.auroc[0]).tolist() == [True, False, False]
    assert np.isnan(score(entries_of(np.ones((1, 6), np.float32)), category, least=4).auroc).all()
