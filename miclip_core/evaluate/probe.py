"""What a linear probe tells of images from their activations: logistic regression, cross-fitted so that no image predicts itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from miclip_core.shuffle import permute
from schemas.errors import BadLabels

NO_CLASS = -1
_MAX_STEPS = 1000
_GRADIENT = 1e-6
"""Where the largest component of the gradient, per image, is smaller, the minimum is found."""


@dataclass(frozen=True, eq=False)
class Probed:
    """Logits float64 [N, C] of N images, and the fold of each, int64 [N]: NO_CLASS if it is in none.

    unfinished: probes of them that had not reached the minimum when they stopped.
    """

    logits_NC: np.ndarray
    fold_N: np.ndarray
    unfinished: int


def make_folds(labels_N: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Which fold each image is in, int64 [N]; NO_CLASS where that is its label.

    Labelled images are shuffled and dealt out class after class, so that folds have the same size, and the same number
    of each class, up to one.
    """
    labelled = np.flatnonzero(labels_N != NO_CLASS)
    shuffled = labelled[permute(len(labelled), "probe", seed)]
    dealt = shuffled[np.argsort(labels_N[shuffled], kind="stable")]
    fold_N = np.full(len(labels_N), NO_CLASS, np.int64)
    fold_N[dealt] = np.arange(len(dealt)) % folds
    return fold_N


def fit_logits(train_ND: np.ndarray, labels_N: np.ndarray, a_MD: np.ndarray, l2: float) -> tuple[np.ndarray, bool]:
    """Logits float64 [M, C] by logistic regression on other images, and whether its minimum was found.

    The loss is the mean cross-entropy plus l2 / 2 times the sum of squared weights; constants are free. Channels are
    brought to mean 0 and standard deviation 1 over the images trained on; those without spread are left at 0. Of two
    classes the one logit z is that of the second: logits are -z / 2 and z / 2. labels_N: 0 to C - 1, each there.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    train = np.asarray(train_ND, np.float64)
    mean_D, sd_D = train.mean(0), train.std(0)
    sd_D[sd_D <= 1e-12 * np.abs(mean_D).clip(min=1e-30)] = np.inf
    model = LogisticRegression(C=1 / (l2 * len(train)), max_iter=_MAX_STEPS, tol=_GRADIENT)
    # sums are cut by threads, so their last bits must not follow the machine
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # is said in the result
        model.fit((train - mean_D) / sd_D, labels_N)
        z = model.decision_function((np.asarray(a_MD, np.float64) - mean_D) / sd_D)
    logits_MC = z if z.ndim == 2 else np.stack([-z / 2, z / 2], 1)
    return logits_MC, bool(model.n_iter_.max() < _MAX_STEPS)


def cross_fit(a_ND: np.ndarray, labels_N: np.ndarray, names: Sequence[str], folds: int, l2: float, seed: int) -> Probed:
    """Logits of every image: of a labelled one by the probe of all other folds, of others by the probe of all that are labelled.

    a_ND: activations, one row per image. labels_N: int64, place in `names`, or NO_CLASS.

    Raises:
        BadLabels: a class has fewer images than there are folds.
    """
    counts = np.bincount(labels_N[labels_N != NO_CLASS], minlength=len(names))
    if few := [f"{name} ({n})" for name, n in zip(names, counts.tolist(), strict=True) if n < folds]:
        raise BadLabels(
            f"classes {', '.join(few[:5])}: found fewer labelled images than folds ({folds}), so a probe would not see them; "
            "give more images, fewer folds, or take these out of classes"
        )
    fold_N = make_folds(labels_N, folds, seed)
    logits_NC = np.empty((len(a_ND), len(names)))
    unfinished = 0
    for fold in (*range(folds), NO_CLASS):
        asked = fold_N == fold
        if not asked.any():
            continue
        train = (fold_N != NO_CLASS) & ~asked
        logits_NC[asked], done = fit_logits(a_ND[train], labels_N[train], a_ND[asked], l2)
        unfinished += not done
    return Probed(logits_NC, fold_N, unfinished)
