"""Parquet bytes in memory to rows."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(data: bytes, columns: Sequence[str] | None = None, checked: bool = False) -> pa.Table:
    """The rows, or some columns of them; `checked`: a page that differs from its checksum is an error.

    Neither by `pq.read_table` nor with Arrow's threads: they let go of the bytes, a Python object, a little after the
    call returns, and a process that ends just then is aborted.
    """
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=checked) as file:
        table = file.read(columns, use_threads=False)
    return table if columns is None else table.select(list(columns))
