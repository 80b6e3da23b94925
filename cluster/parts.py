"""Parts and artifacts on their way into the store: written, read back, and named as they lie there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from cluster.parquet import EncodedPart, read_part, sha256
from cluster.stores.base import Store
from schemas import layout
from schemas.columns import VECTOR
from schemas.errors import TableMismatch
from schemas.plans import Shard, StageSpec, StoredArtifact, StoredPart

MAX_KEY_ATTEMPTS = 8
"""Keys of one part or artifact, each for when the one before holds something else."""

Equivalent = Callable[[bytes, bytes], bool]
"""(what is found, what we would write) -> whether the one may stand for the other."""


def store_part(store: Store, table: str, stage: StageSpec, shard: Shard, n: int, part: EncodedPart) -> StoredPart:
    """Store the nth part of a table of a shard; one with the same rows that an earlier try stored stays.

    Raises:
        TableMismatch: every key of it holds something else.
    """
    keys = [layout.part_key(table, stage, shard, n, attempt) for attempt in range(MAX_KEY_ATTEMPTS)]
    with part.file:
        key, data = create_verified(store, keys, part.read(), same_rows)
    return StoredPart(table=table, key=key, rows=part.rows, bytes=len(data), sha256=sha256(data))


def store_artifact(store: Store, stage: str, shard: int, name: str, data: bytes) -> StoredArtifact:
    """Store an artifact of a shard.

    Raises:
        TableMismatch: every key of it holds something else.
    """
    keys = [layout.artifact_key(stage, shard, name, attempt) for attempt in range(MAX_KEY_ATTEMPTS)]
    key, found = create_verified(store, keys, data)
    return StoredArtifact(name=name, key=key, bytes=len(found), sha256=sha256(found))


def create_verified(
    store: Store, keys: Sequence[str], data: bytes, equivalent: Equivalent | None = None
) -> tuple[str, bytes]:
    """Store under the first key that then reads back whole; returns that key and what it holds.

    What this call wrote must read back byte for byte. A key that somebody (or our own lost answer) filled before is
    accepted if it holds the same bytes or, by `equivalent`, the same rows. What is not accepted is left where it is and
    the next key is used: nothing is ever deleted or overwritten.

    Raises:
        TableMismatch: no key is accepted.
    """
    for key in keys:
        created = store.create(key, data)
        found = store.get(key)
        if found == data or (not created and equivalent is not None and equivalent(found, data)):
            return key, found
    raise TableMismatch(f"{keys[0]} and {len(keys) - 1} later keys all hold other bytes; the store damages objects")


def same_rows(found: bytes, ours: bytes) -> bool:
    """Whether two parts agree in everything but numbers that a kernel may round another way."""
    try:
        there = read_part(found)
    except Exception:  # whatever is wrong with it, it is not our part
        return False
    here = read_part(ours)
    exact = [f.name for f in here.schema if not (pa.types.is_floating(f.type) or f.type == VECTOR)]
    return there.schema.equals(here.schema) and there.select(exact).equals(here.select(exact))
