"""Which images are looked at for which concept: the first of the index that show it."""

from __future__ import annotations

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
class Labelled:
    """What is known of all images of an index: columns of labels, and the rows of files that are not there before, ascending."""

    categories: tuple[Category, ...]
    images: np.ndarray


def read_labelled(plan: Plan, inputs: Inputs) -> Labelled:
    """The images and labels that a stage chooses from. Raises BadLabels: labels are not known."""
    params: Any = plan.stage.params
    rows, index = plan.rounds[0].rows, plan.stage.inputs["labels"]
    first = read_index(inputs, index, "duplicate_of", [(0, rows)])
    images = np.array(sorted(i for i, original in first.items() if original is None), np.int64)
    return Labelled(read_categories(inputs, index, rows, params["labels_from"]), images)


def choose(plan: Plan, inputs: Inputs, labelled: Labelled) -> Choice:
    """The images of every concept over the whole index, whatever shard asks.

    Raises:
        BadLabels: no image shows a concept that has features.
        BadSpec: a concept is a value of several columns.
    """
    params: Any = plan.stage.params
    names: list[str] = params["concepts"]
    units = _units(plan, inputs)
    images, labels = labelled.images, Labels(labelled.categories, names)
    column = {int(concept): place for place, concept in enumerate(labels.concepts)}
    shows = labels.of(images).numpy()
    found: dict[int, list[int]] = {}
    seen: set[int] = set()
    for concept in params["chosen"]:
        if concept in column and concept in units:
            showing = images[shows[:, column[concept]]][: params["images_per_concept"]]
            for image in showing.tolist():
                found.setdefault(image, []).append(concept)
                seen.add(concept)
    if not found:
        chosen = ", ".join(names[concept] for concept in params["chosen"][:5])
        raise BadLabels(
            f"no image is labelled with any of the concepts {chosen} that have features; give others in concepts, or the "
            "columns that have them in labels_from"
        )
    unseen = [concept for concept in params["chosen"] if concept in units and concept not in seen]
    return Choice(
        {image: tuple(sorted(concepts)) for image, concepts in found.items()},
        units,
        tuple(names[concept] for concept in unseen),
        tuple(names[concept] for concept in params["chosen"] if concept not in units),
    )


def _units(plan: Plan, inputs: Inputs) -> dict[int, tuple[int, ...]]:
    tau = int(str(plan.stage.params["tau"]))
    lists = read_lists(inputs, plan.stage.inputs["units"], "localise", tau)
    found: dict[int, list[int]] = {}
    for concept, unit in zip(lists.concepts.tolist(), lists.units.tolist(), strict=True):
        found.setdefault(concept, []).append(unit)
    return {concept: tuple(units) for concept, units in found.items()}
