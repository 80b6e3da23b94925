"""What the rounds hand to each other: arrays as bytes, under names that say whose they are."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping

import numpy as np

from jobs.protocol import Artifact, Inputs
from schemas.errors import KeyMissing
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


def bucket_features(bucket: int, buckets: int, latents: int) -> tuple[int, int]:
    """Features [start, stop) of a bucket; equal up to one, and none where there are more buckets than features."""
    return bucket * latents // buckets, (bucket + 1) * latents // buckets


def pack(stage: str, name: str, arrays: Mapping[str, np.ndarray]) -> Artifact:
    """Arrays as an artifact."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return Artifact(stage, name, buffer.getvalue())


def unpack(inputs: Inputs, plan: Plan, shard: int, name: str) -> dict[str, np.ndarray] | None:
    """What `pack` made in an earlier round; None if that shard made no such thing."""
    try:
        data = inputs.artifact(plan.digest, shard, name)
    except KeyMissing:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as state:
        return {key: state[key] for key in state.files}


def unpack_all(inputs: Inputs, plan: Plan, round_number: int, name: str) -> Iterator[dict[str, np.ndarray]]:
    """The same of every shard of a round that has it, in order."""
    for shard in plan.shards(round_number):
        if (found := unpack(inputs, plan, shard.number, name)) is not None:
            yield found


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
