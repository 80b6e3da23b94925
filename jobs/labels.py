"""Which class an image is of, by the label or an attribute that its index holds."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.protocol import Inputs
from schemas.errors import BadLabels


def read_classes(
    inputs: Inputs,
    index: str,
    names: Sequence[str],
    labels_from: str,
    ranges: Sequence[tuple[int, int]],
    required: bool = True,
) -> dict[int, int]:
    """Row of the index -> class, for images in these ranges whose label is the name of one.

    names: of the classes, compared without white space around them. labels_from: `label`, or the name of an attribute.

    Raises:
        BadLabels: it is required that some image is of a class, and none is.
    """
    number = {name.strip(): i for i, name in enumerate(names)}
    wanted = ["image_index", "label" if labels_from == "label" else "attributes"]
    found: dict[int, int] = {}
    seen: dict[str, None] = {}
    for batch in inputs.table(index, "images", wanted, ("image_index", ranges)):
        indices, named = (batch[name].to_pylist() for name in wanted)
        for image, value in zip(indices, named, strict=True):
            label = value if labels_from == "label" else dict(value).get(labels_from)
            if label is None:
                continue
            seen[label] = None
            if label.strip() in number:
                found[image] = number[label.strip()]
    if required and not found:
        there = ", ".join(_columns(inputs, index, ranges)) or "none"
        raise BadLabels(
            f"classes {', '.join(list(number)[:5])}: no image that is looked at is of any; its {labels_from} is "
            f"{', '.join(map(repr, list(seen)[:5])) or 'not known'}; name one of the columns in labels_from (there are "
            f"{there}), give images.labels, or classes that labels name"
        )
    return found


def _columns(inputs: Inputs, index: str, ranges: Sequence[tuple[int, int]]) -> list[str]:
    """What these images have a value of: `label` and the names of attributes."""
    columns: dict[str, None] = {}
    for batch in inputs.table(index, "images", ["image_index", "label", "attributes"], ("image_index", ranges)):
        if batch["label"].null_count < batch.num_rows:
            columns["label"] = None
        columns |= {name: None for attributes in batch["attributes"].to_pylist() for name in dict(attributes)}
    return list(columns)
