"""Which images are labelled with which concepts: labels, attributes and predictions of an index as categories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.columns import read_predictions
from jobs.predictions import PREDICTED
from jobs.protocol import Inputs
from miclip_core.concepts.names import value_places
from miclip_core.sae.features.concepts import label_categories
from miclip_core.sae.features.selectivity import Category
from schemas.errors import BadLabels, BadSpec

_ANY = 1 << 62
"""Values that a column may have: an attribute with one per image is no concept, and costs nothing."""


class Labels:
    """Categories over the rows [0, n) of an index, and the concepts that are values of them.

    concepts int64 [L]: numbers of those concepts, ascending; all others have no image.
    """

    def __init__(self, categories: Sequence[Category], names: Sequence[str]) -> None:
        """Raises: BadSpec (a concept is a value of several categories). BadLabels (no concept is a value of any)."""
        try:
            self.places = value_places(categories, names)
        except BadSpec as error:
            raise BadSpec(f"{error}; labels_from says which columns count") from None
        self.categories = tuple(categories)
        found = np.unique(np.concatenate([place[place >= 0] for place in self.places]))
        self.concepts = found.astype(np.int64)
        if not len(found):
            raise BadLabels(
                f"no image is labelled with any of the concepts {', '.join(names[:5])}: "
                f"{'; '.join(_say(category) for category in categories)}; give concepts that labels name, such as "
                "`world`, or the column that has them in labels_from"
            )
        self._column = np.full(len(names), -1)
        self._column[found] = np.arange(len(found))

    def of(self, images: np.ndarray) -> Tensor:
        """Which of these rows of the index is labelled with which of `concepts`: bool [images, L]."""
        out = np.zeros((len(images), len(self.concepts)), bool)
        for category, place in zip(self.categories, self.places, strict=True):
            column = np.where(place >= 0, self._column[place], -1)[category.classes[images]]
            image, slot = np.nonzero(column >= 0)
            out[image, column[image, slot]] = True
        return torch.from_numpy(out)

    def properties(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, Category]]:
        """For each category with concepts: which they are, int64 [L], and what these rows of the index have of it.

        Value i of the category is concept i of those; its last value stands for all that are no concepts.
        """
        for category, place in zip(self.categories, self.places, strict=True):
            concepts = np.unique(place[place >= 0])
            if not len(concepts):
                continue
            number = np.where(place >= 0, np.searchsorted(concepts, place), len(concepts))
            number[-1] = -1  # slots not used
            classes = number[category.classes[images]]
            for later in range(1, classes.shape[1]):
                repeated = (classes[:, later : later + 1] == classes[:, :later]).any(1)
                classes[repeated, later] = -1
            names = tuple(str(m) for m in concepts)
            yield concepts.astype(np.int64), Category(category.name, (*names, "other"), classes)


def _say(category: Category) -> str:
    return f"{category.name} is {', '.join(category.values[:4])}{', ...' if len(category.values) > 4 else ''}"


def read_categories(
    inputs: Inputs, index: str, rows: int, labels_from: Sequence[str], predictions: str | None = None
) -> tuple[Category, ...]:
    """The columns that `labels_from` names, or label and all attributes; item n of each is row n of the index.

    predictions: the stage that column `predicted` is of, where that is wanted.

    Raises:
        BadLabels: no image has such a column.
    """
    wanted = tuple(labels_from)
    labels: list[str | None] = [None] * rows
    attributes: list[Any] = [None] * rows
    columns = ("image_index", "label", "attributes")
    for batch in inputs.table(index, "images", columns, ("image_index", [(0, rows)])):
        for row, label, others in zip(*(batch[name].to_pylist() for name in columns), strict=True):
            labels[row], attributes[row] = label, others
    named = {category.name: category for category in label_categories(labels, attributes, _ANY)}
    if PREDICTED in wanted and predictions is not None:
        named |= _predicted(inputs, predictions, rows)
    if not named or (missing := [name for name in wanted if name not in named]):
        raise BadLabels(
            f"{', '.join(missing) if named else 'labels and attributes'}: not known of these images (columns with at least two "
            f"values are {', '.join(named) or 'none'}); give images.labels, or other columns in labels_from"
        )
    return tuple(named[name] for name in wanted) if wanted else tuple(named.values())


def _predicted(inputs: Inputs, stage: str, rows: int) -> dict[str, Category]:
    """The first predicted class of each image."""
    names: dict[int, str] = {}
    for batch in inputs.table(stage, "predictions", ["class_id", "class_name"]):
        names.update(zip(batch["class_id"].to_pylist(), batch["class_name"].to_pylist(), strict=True))
    values = tuple(sorted(set(names.values())))
    place = {number: values.index(name) for number, name in names.items()}
    classes = np.full((rows, 1), -1, np.int32)
    for index, number in read_predictions(inputs, stage, [(0, rows)]).items():
        classes[index, 0] = place[number]
    return {PREDICTED: Category(PREDICTED, values, classes)}
