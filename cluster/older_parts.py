"""Parts that another version wrote: which columns they have beside those that are declared now, read from their footers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.stores import Store, prefetch
from schemas.columns import Table
from schemas.errors import DamagedPart
from schemas.plans import StoredPart

REMEMBERED = 1 << 15
"""Parts whose columns a process knows without another look; a part never changes."""


def columns_of(store: Store, parts: Sequence[StoredPart]) -> list[frozenset[str]]:
    """The columns of each part, in the order of the parts; those that were looked up before are remembered.

    All of them are looked at: shards end in any order, so that parts of one version may lie between those of another.

    Raises:
        DamagedPart: one is no Parquet file.
    """
    return [names for _, names in prefetch(_columns, [(store, part) for part in parts])]


@lru_cache(REMEMBERED)
def _columns(of: tuple[Store, StoredPart]) -> frozenset[str]:
    store, part = of
    filesystem, root = store.arrow_fs()
    try:
        return frozenset(pq.read_schema(f"{root}/{part.key}", filesystem=filesystem).names)
    except pa.ArrowInvalid as error:
        raise DamagedPart(f"{part.key}: {error}; `miclip verify` lists all damage") from None


def are_alike(table: Table, found: Sequence[frozenset[str]]) -> bool:
    """Whether all of them have the declared columns, neither more nor fewer."""
    return all(names == frozenset(table.schema.names) for names in found)


def find_needed(table: Table, found: Sequence[frozenset[str]]) -> list[str]:
    """Columns that some part was written before and that may not be null."""
    return [c.name for c in table.columns if not c.nullable and any(c.name not in names for names in found)]
