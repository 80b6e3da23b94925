"""What the rounds of a plan hand to each other: arrays as bytes, under names that say whose they are."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping

import numpy as np

from jobs.protocol import Artifact, Inputs
from schemas.errors import KeyMissing
from schemas.plans import Plan, Shard


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


def bucket_units(bucket: int, buckets: int, units: int) -> tuple[int, int]:
    """Units [start, stop) of a bucket; equal up to one, and none where there are more buckets than units."""
    return bucket * units // buckets, (bucket + 1) * units // buckets


def places_of(plan: Plan, shard: Shard, n: int) -> range:
    """Which of n things a shard is about, where a round has as many rows as planning expected there to be.

    As many as the shard has rows, for as long as there are some; all are spread over the shards if there are more.
    """
    rows = plan.rounds[shard.round].rows
    start, stop = shard.start, shard.stop
    if n > rows:
        start, stop = start * n // rows, stop * n // rows
    return range(min(start, n), min(stop, n))
