"""Columns of published tables as arrays, by image or by text: what an index says, predicted classes, image embeddings, texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from jobs.protocol import Inputs

Ranges = Sequence[tuple[int, int]]
"""Rows [start, stop) of the index."""


def read_index(inputs: Inputs, index: str, column: str, ranges: Ranges) -> dict[int, str | None]:
    """image_index -> what one text column of an index says of the image, such as its uri, label or caption, or the image that it is a duplicate of."""
    found: dict[int, str | None] = {}
    for batch in inputs.table(index, "images", ("image_index", column), ("image_index", ranges)):
        found.update(zip(batch["image_index"].to_pylist(), batch[column].to_pylist(), strict=True))
    return found


def read_predictions(inputs: Inputs, stage: str, ranges: Ranges | None = None) -> dict[int, int]:
    """image_index -> the class that a stage of predictions has first."""
    found: dict[int, int] = {}
    between = None if ranges is None else ("image_index", ranges)
    for batch in inputs.table(stage, "predictions", ["image_index", "rank", "class_id"], between):
        first = batch.filter(pa.array(batch["rank"].to_numpy() == 0)) if len(batch) else batch
        found.update(zip(first["image_index"].to_pylist(), first["class_id"].to_pylist(), strict=True))
    return found


def read_embeddings(inputs: Inputs, stage: str, ranges: Ranges | None = None) -> tuple[list[int], np.ndarray]:
    """image_index of every image of a stage of embeddings, and float32 [images, E]; [0, 0] if there are none."""
    indices: list[int] = []
    parts: list[np.ndarray] = []
    between = None if ranges is None else ("image_index", ranges)
    for batch in inputs.table(stage, "embeddings", ["image_index", "embedding"], between):
        if len(batch):
            indices += batch["image_index"].to_pylist()
            parts.append(as_matrix(batch["embedding"]))
    return indices, np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def read_texts(inputs: Inputs, stage: str) -> np.ndarray:
    """The vectors of a stage of text embeddings by text_id, float32 [texts, E]."""
    rows = [batch for batch in inputs.table(stage, "text_embeddings", ["text_id", "embedding"]) if len(batch)]
    ids = np.concatenate([batch["text_id"].to_numpy() for batch in rows])
    return np.concatenate([as_matrix(batch["embedding"]) for batch in rows])[np.argsort(ids)]


def as_ranges(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending rows of an index as ranges that hold these alone."""
    cuts = [0, *(i for i, (one, other) in enumerate(pairwise(rows), 1) if other != one + 1), len(rows)]
    return [(rows[a], rows[b - 1] + 1) for a, b in pairwise(cuts) if a < b]


def as_matrix(column: pa.ListArray) -> np.ndarray:
    """A column of equal lists as float32 [n, width]."""
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)
