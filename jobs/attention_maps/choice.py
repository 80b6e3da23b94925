"""Which images are looked at for which concept: the first of the index that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.columns import read_index
from jobs.concept_labels import Labels, read_categories
from jobs.described import read_lists
from jobs.protocol import Inputs
from miclip_core.sae.features.selectivity import Category
from schemas.errors import BadLabels
from schemas.plans import Plan

BLOCK = 1 << 12
"""Images whose concepts are looked up at once."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What one stage looks at.

    concepts: image_index -> concepts to be looked for there, ascending. units: concept -> its features, best first.
    without_images, without_units: names of concepts that were asked for and have none.
    """

    concepts: dict[int, tuple[int, ...]]
    units: dict[int, tuple[int, ...]]
    without_images: tuple[str, ...]
    without_units: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LabelledIndex:
    """What is known of all images of an index: columns of labels, and the rows of files that are not there before, ascending."""

    categories: tuple[Category, ...]
    images: np.ndarray


def read_labelled(plan: Plan, inputs: Inputs) -> LabelledIndex:
    """The images and labels that a stage chooses from. Raises BadLabels: labels are not known."""
    params: Any = plan.stage.params
    rows, index = plan.rounds[0].rows, plan.stage.inputs["labels"]
    first = read_index(inputs, index, "duplicate_of", [(0, rows)])
    images = np.array(sorted(i for i, original in first.items() if original is None), np.int64)
    return LabelledIndex(read_categories(inputs, index, rows, params["labels_from"]), images)


def choose(plan: Plan, inputs: Inputs, labelled: LabelledIndex) -> Choice:
    """The images of every concept over the whole index, whatever shard asks.

    Raises:
        BadLabels: concepts have features, but no image shows any of them.
        BadSpec: a concept is a value of several columns.
    """
    params: Any = plan.stage.params
    names: list[str] = params["concepts"]
    units = _units(plan, inputs)
    wanted = [concept for concept in params["chosen"] if concept in units]
    showing = _first_images(labelled, Labels(labelled.categories, names), wanted, params["images_per_concept"])
    found: dict[int, list[int]] = {}
    for concept, images in sorted(showing.items()):
        for image in images:
            found.setdefault(image, []).append(concept)
    if wanted and not found:  # a method that found no features has no maps, and a note says so
        chosen = ", ".join(names[concept] for concept in params["chosen"][:5])
        raise BadLabels(
            f"no image is labelled with any of the concepts {chosen} that have features; give others in concepts, or the "
            "columns that have them in labels_from"
        )
    return Choice(
        {image: tuple(concepts) for image, concepts in found.items()},
        units,
        tuple(names[concept] for concept in wanted if concept not in showing),
        tuple(names[concept] for concept in params["chosen"] if concept not in units),
    )


def _first_images(labelled: LabelledIndex, labels: Labels, wanted: Sequence[int], count: int) -> dict[int, list[int]]:
    """The first `count` images of each concept that any shows, a block of images at a time, no further than needed."""
    columns = np.flatnonzero(np.isin(labels.concepts, wanted))
    found: dict[int, list[int]] = {int(labels.concepts[column]): [] for column in columns}
    for start in range(0, len(labelled.images), BLOCK):
        block = labelled.images[start : start + BLOCK]
        place, column = np.nonzero(labels.of(block).numpy()[:, columns])
        for image, concept in zip(block[place].tolist(), labels.concepts[columns[column]].tolist(), strict=True):
            if len(found[concept]) < count:
                found[concept].append(image)
        if all(len(images) == count for images in found.values()):
            break
    return {concept: images for concept, images in found.items() if images}


def _units(plan: Plan, inputs: Inputs) -> dict[int, tuple[int, ...]]:
    tau = int(str(plan.stage.params["tau"]))
    lists = read_lists(inputs, plan.stage.inputs["units"], "localise", tau)
    found: dict[int, list[int]] = {}
    for concept, unit in zip(lists.concepts.tolist(), lists.units.tolist(), strict=True):
        found.setdefault(concept, []).append(unit)
    return {concept: tuple(units) for concept, units in found.items()}
