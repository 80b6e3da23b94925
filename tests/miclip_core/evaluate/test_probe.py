"""Linear probes against logistic regression called plainly, by hand on a separable toy, and on labels that say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from miclip_core.evaluate.probe import NO_CLASS, cross_fit, fit_logits, make_folds
from schemas.errors import BadLabels

NAMES = ("cat", "dog", "cow")


def made_up(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Activations [n, 6] around one centre per class; the last channel never varies."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(NAMES), n)
    a = np.eye(len(NAMES), 6)[labels] * 3 + noise * random.normal(size=(n, 6))
    a[:, -1] = 7
    return a.astype(np.float32), labels


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_every_image_is_predicted_by_plain_logistic_regression_on_the_other_folds() -> None:
    a, labels = made_up(90, noise=1.5)
    labels[::7] = NO_CLASS
    found = cross_fit(a, labels, NAMES, folds=4, l2=0.01, seed=3)
    for i in range(len(a)):
        train = (labels != NO_CLASS) & ((found.fold_N != found.fold_N[i]) | (labels[i] == NO_CLASS))
        x = a[train].astype(np.float64)
        mean, sd = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1)
        plain = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-8, max_iter=5000).fit((x - mean) / sd, labels[train])
        np.testing.assert_allclose(
            softmax(found.logits_NC[i : i + 1]), plain.predict_proba((a[i : i + 1] - mean) / sd), atol=1e-4
        )
    assert found.unfinished == 0


def test_of_two_classes_on_one_channel_the_weight_solves_the_equation_of_the_minimum() -> None:
    """Standardised, the images are at -1 and 1: the loss log(1 + e^-w) + l2 w^2 / 2 has its minimum where l2 w (1 + e^w) = 1."""
    a, labels = np.array([[2.0], [2.0], [6.0], [6.0]]), np.array([0, 0, 1, 1])
    logits, found = fit_logits(a, labels, np.array([[2.0], [4.0], [6.0], [8.0]]), l2=0.1)
    w = 2 * logits[2, 1]
    assert found and 0.1 * w * (1 + np.exp(w)) == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(logits, np.outer([-1, 0, 1, 2], [-w / 2, w / 2]), atol=1e-5)


def test_classes_that_are_apart_are_told_and_shuffled_labels_are_at_chance() -> None:
    a, labels = made_up(300, noise=0.2)
    told = cross_fit(a, labels, NAMES, folds=5, l2=1e-3, seed=0).logits_NC.argmax(1)
    assert (told == labels).all()
    shuffled = np.random.default_rng(1).permutation(labels)
    guessed = cross_fit(a, shuffled, NAMES, folds=5, l2=1e-3, seed=0).logits_NC.argmax(1)
    assert (guessed == shuffled).mean() == pytest.approx(1 / 3, abs=0.09)  # three standard errors


def test_an_image_whose_own_label_is_wrong_is_not_learnt_by_heart() -> None:
    random = np.random.default_rng(0)
    a, labels = (
        random.normal(size=(40, 200)),
        np.arange(40) % 2,
    )  # more channels than images: all can be learnt by heart
    itself, _ = fit_logits(a, labels, a, l2=1e-3)
    others = cross_fit(a, labels, NAMES[:2], folds=5, l2=1e-3, seed=0).logits_NC
    assert (itself.argmax(1) == labels).all() and (others.argmax(1) == labels).mean() < 0.8


def test_folds_share_out_the_images_of_every_class() -> None:
    labels = np.array([0] * 7 + [NO_CLASS] * 3 + [1] * 5 + [2] * 9)
    folds = make_folds(labels, 5, seed=0)
    assert (folds[7:10] == NO_CLASS).all()
    sizes = np.bincount(folds[labels != NO_CLASS], minlength=5)
    assert sorted(sizes.tolist()) == [4, 4, 4, 4, 5]
    for label in range(3):
        assert np.ptp(np.bincount(folds[labels == label], minlength=5)) <= 1
    assert folds.tolist() == make_folds(labels, 5, seed=0).tolist() != make_folds(labels, 5, seed=1).tolist()


def test_a_class_with_fewer_images_than_folds_is_refused_by_name() -> None:
    a, labels = made_up(30, noise=1)
    labels[labels == 1] = NO_CLASS
    labels[:2] = 1
    with pytest.raises(BadLabels, match=r"classes dog \(2\): found fewer labelled images than folds \(3\)"):
        cross_fit(a, labels, NAMES, folds=3, l2=1e-3, seed=0)
