"""What the rounds hand to each other, by name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jobs.between import unpack
from jobs.protocol import Inputs
from schemas.plans import Plan

IMAGES = "images"
"""image_index int64 and image_id of a shard's images, in the order of the index."""
EMBEDDINGS = "embeddings"
"""Their image embeddings, float32 [images, E]; zeros where an image has none."""
TRUTH = "truth"
"""Category -> what each of their patches shows, int16 [images, patches]."""
SCORES = "scores"
"""The selectivity rows of a bucket that may be among the best."""


def codes_name(bucket: int) -> str:
    """The codes of a shard for one bucket of features."""
    return f"codes-{bucket:05d}"


def unpack_embeddings(inputs: Inputs, plan: Plan) -> Iterator[np.ndarray]:
    """The image embeddings [images, E] of each map shard, in order; zeros, which stand for none, where a shard has none.

    Without those zeros every later image would be taken for one before it. Nothing at all if no shard has any.
    """
    ahead, width = 0, None
    for shard in plan.shards(0):
        images = unpack(inputs, plan, shard.number, IMAGES)
        count = 0 if images is None else len(images["image_index"])
        found = unpack(inputs, plan, shard.number, EMBEDDINGS)
        if found is not None:
            vectors = found["embedding"]
            if width is None and ahead:
                yield np.zeros((ahead, vectors.shape[1]), vectors.dtype)
            width = vectors.shape[1]
            yield vectors
        elif width is not None:
            yield np.zeros((count, width), np.float32)
        else:
            ahead += count
