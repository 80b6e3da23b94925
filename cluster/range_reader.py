"""Rows of published tables by ranges of one column: only the row groups that may hold them are read, each once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.parquet import complete
from cluster.stores.base import Store, prefetch
from schemas.columns import Table
from schemas.errors import DamagedPart
from schemas.plans import StoredPart

GROUPS_AHEAD = 2
_ANY = np.iinfo(np.int64)
Found = TypeVar("Found")


class _Groups(NamedTuple):
    """Every row group of a table: number of its part, its number there, and the bounds of the column, int64 [G] each."""

    footers: list[pq.FileMetaData]
    part: np.ndarray
    number: np.ndarray
    low: np.ndarray
    high: np.ndarray


class RangeReader:
    """Keeps the footers of the parts it has seen (some 10 kB each) and reads one row group after another."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[tuple[str, str], _Groups] = {}
        self._lock = threading.Lock()

    def read(
        self,
        parts: Sequence[StoredPart],
        table: Table,
        columns: Sequence[str] | None,
        column: str,
        ranges: Sequence[tuple[int, int]],
    ) -> Iterator[pa.RecordBatch]:
        """Rows of one table's parts whose integer column lies in one of the disjoint [start, stop), in part order.

        What is read is checked against the checksums of its pages, for a part's own would need all of it.

        Raises:
            DamagedPart: a part is gone, or is not what was published.
            OlderPart: a part is older than a column that may not be null.
        """
        groups = self._groups(parts, column)
        names = None if columns is None else list(dict.fromkeys([*columns, column]))

        def read(i: int) -> pa.Table:
            part, footer = parts[groups.part[i]], groups.footers[groups.part[i]]
            return self._reading(
                part, lambda file: file.read_row_group(groups.number[i], names, use_threads=False), footer
            )

        starts, stops = np.array(sorted(ranges), dtype=np.int64).reshape(-1, 2).T
        wanted = np.flatnonzero(_overlap(groups.low, groups.high, starts, stops)).tolist()
        asked = table.schema.names if columns is None else columns
        for _, group in prefetch(read, wanted, GROUPS_AHEAD):
            value = group.column(column).to_numpy()
            rows = _take(group, _overlap(value, value, starts, stops))
            if rows.num_rows:
                yield from complete(rows, asked, table).to_batches()

    def _groups(self, parts: Sequence[StoredPart], column: str) -> _Groups:
        """The row groups of a table, whose parts never change once they are published."""
        key = (parts[0].key if parts else "", column)
        with self._lock:
            if key not in self._seen:
                footers = [footer for _, footer in prefetch(self._footer, parts)]
                found = [
                    (i, group, *_bounds(footer.row_group(group), column))
                    for i, footer in enumerate(footers)
                    for group in range(footer.num_row_groups)
                ]
                self._seen[key] = _Groups(footers, *np.array(found, dtype=np.int64).reshape(-1, 4).T)
            return self._seen[key]

    def _footer(self, part: StoredPart) -> pq.FileMetaData:
        footer = self._reading(part, lambda file: file.metadata)
        if footer.num_rows != part.rows:
            raise DamagedPart(f"{part.key}: expected {part.rows} rows, found {footer.num_rows}; restore it")
        return footer

    def _reading(
        self, part: StoredPart, look: Callable[[pq.ParquetFile], Found], footer: pq.FileMetaData | None = None
    ) -> Found:
        filesystem, root = self._store.arrow_fs()
        path = f"{root}/{part.key}"
        try:
            with pq.ParquetFile(
                path, filesystem=filesystem, metadata=footer, pre_buffer=True, page_checksum_verification=True
            ) as file:
                return look(file)
        except FileNotFoundError:
            raise DamagedPart(f"{part.key} is published but gone; restore it") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise DamagedPart(f"{part.key} is published but cannot be read: {error}; restore it") from error


def _bounds(group: pq.RowGroupMetaData, column: str) -> tuple[int, int]:
    """Smallest and largest value of an integer column; all there is where a foreign writer noted none."""
    leaf = next(i for i in range(group.num_columns) if group.column(i).path_in_schema == column)
    noted = group.column(leaf).statistics
    return (noted.min, noted.max) if noted is not None and noted.has_min_max else (_ANY.min, _ANY.max)


def _overlap(low: np.ndarray, high: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Which of the intervals [low, high] meet one of the disjoint, ascending [start, stop): bool, shape of `low`."""
    if len(starts) == 0:
        return np.zeros(len(low), dtype=bool)
    nearest = np.searchsorted(starts, high, side="right") - 1
    return (nearest >= 0) & (stops[nearest] > low)


def _take(table: pa.Table, chosen: np.ndarray) -> pa.Table:
    """Those rows; where they are neighbours nothing is copied."""
    rows = np.flatnonzero(chosen)
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        return table.slice(int(rows[0]), len(rows))
    return table.filter(pa.array(chosen))
