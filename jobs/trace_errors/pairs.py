"""The true, the predicted and the wrong class of every image of a set: what images are traced against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jobs.columns import read_predictions
from jobs.labels import read_classes
from jobs.protocol import Inputs
from miclip_core.evaluate.trace import pair_wrong_labels
from schemas.plans import Plan


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images that have a true class and a prediction, int64 [N] each, by image_index.

    wrong: the class that each is traced against, NONE if there is none. unlabelled: images with a prediction and no class.
    """

    image_index: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    wrong: np.ndarray
    unlabelled: int

    @cached_property
    def known(self) -> frozenset[int]:
        """image_index of all of them."""
        return frozenset(self.image_index.tolist())

    def labels(self, images: Sequence[tuple[int, str]]) -> np.ndarray:
        """Truth, wrong and predicted class of some of these images, int64 [n, 3]."""
        place = np.searchsorted(self.image_index, np.array([index for index, _ in images], np.int64))
        return np.stack([self.truth, self.wrong, self.predicted], 1)[place]


def read_pairs(plan: Plan, inputs: Inputs) -> Pairs:
    """The pairs of the whole image set, whatever shard asks: so twins do not depend on how the images are cut.

    Raises:
        BadLabels: no image is of any class.
    """
    params: Any = plan.stage.params
    predicted = read_predictions(inputs, plan.stage.inputs["predictions"])
    everything = [(0, int(params["rows"]))]
    labels = read_classes(inputs, plan.stage.inputs["labels"], params["classes"], params["labels_from"], everything)
    index = np.array(sorted(labels.keys() & predicted.keys()), np.int64)
    truth, guess = (np.array([of[i] for i in index.tolist()], np.int64) for of in (labels, predicted))
    return Pairs(index, truth, guess, pair_wrong_labels(truth, guess), len(predicted) - len(index))
