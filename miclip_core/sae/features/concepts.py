"""Labels and other columns of an image set as categories of concepts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from miclip_core.sae.features.selectivity import Category

_FURTHER = re.compile(r"^(?P<name>.+)_(?P<number>[2-9]|[1-9]\d+)$")


def label_categories(
    labels: Sequence[str | None],
    attributes: Sequence[Mapping[str, str] | Iterable[tuple[str, str]] | None],
    max_values: int,
) -> tuple[Category, ...]:
    """The label and the columns of the same images, as `label_category` and `attribute_categories` make them."""
    of_label = label_category(labels)
    return tuple(c for c in (of_label, *attribute_categories(attributes, max_values)) if c is not None)


def label_category(labels: Sequence[str | None]) -> Category | None:
    """The label of each image; None if fewer than two are in use. Images without one are left out."""
    return _category("label", [labels])


def attribute_categories(
    attributes: Sequence[Mapping[str, str] | Iterable[tuple[str, str]] | None], max_values: int
) -> list[Category]:
    """One category per column with 2 .. max_values distinct values, by name; images where a column is empty are left out.

    Columns `name_2`, `name_3` ... beside `name` hold further values of `name`: an image has all of them.
    """
    rows = [dict(row or ()) for row in attributes]
    names = sorted({name for row in rows for name in row})
    columns: dict[str, list[str]] = {}
    for name in names:
        match = _FURTHER.match(name)
        base = match["name"] if match and match["name"] in names else name
        columns.setdefault(base, []).append(name)
    found = (_category(base, [[row.get(c) for row in rows] for c in group]) for base, group in columns.items())
    return [category for category in found if category is not None and len(category.values) <= max_values]


def _category(name: str, slots: Sequence[Sequence[str | None]]) -> Category | None:
    values = sorted({value for slot in slots for value in slot if value is not None})
    if len(values) < 2:
        return None
    number = {value: i for i, value in enumerate(values)}
    classes = np.array([[-1 if value is None else number[value] for value in slot] for slot in slots], np.int32).T
    for later in range(1, classes.shape[1]):
        repeated = (classes[:, later : later + 1] == classes[:, :later]).any(1)
        classes[repeated, later] = -1
    return Category(name, tuple(values), classes)
