"""Parts that another version wrote: which columns they have beside those that are declared now, read from their footers."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.catalog import Catalog
from cluster.stores import Store, prefetch
from schemas.columns import Table
from schemas.errors import DamagedPart
from schemas.plans import StoredPart


def columns_of(store: Store, parts: Sequence[StoredPart]) -> list[frozenset[str]]:
    """The columns of each part, in the order of the parts.

    Raises:
        DamagedPart: one is no Parquet file.
    """
    filesystem, root = store.arrow_fs()

    def read(part: StoredPart) -> frozenset[str]:
        try:
            return frozenset(pq.read_schema(f"{root}/{part.key}", filesystem=filesystem).names)
        except pa.ArrowInvalid as error:
            raise DamagedPart(f"{part.key}: {error}; `miclip verify` lists all damage") from None

    return [names for _, names in prefetch(read, parts)]


def end_parts(catalog: Catalog, name: str) -> list[StoredPart]:
    """The first and the last part of every stage: one version made both, or one began the stage and another ended it."""
    parts = [published.tables[name] for published in catalog.select(name)]
    return [part for of in parts for part in dict.fromkeys([*of[:1], *of[-1:]])]


def are_alike(table: Table, found: Sequence[frozenset[str]]) -> bool:
    """Whether all of them have the declared columns, neither more nor fewer."""
    return all(names == frozenset(table.schema.names) for names in found)


def find_needed(table: Table, found: Sequence[frozenset[str]]) -> list[str]:
    """Columns that some part was written before and that may not be null."""
    return [c.name for c in table.columns if not c.nullable and any(c.name not in names for names in found)]
