"""The Python read API: published tables as Arrow, Polars or torch, reading only the parts and columns that are asked for."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.catalog import Catalog, Scope, Where, open_catalog, wanted
from cluster.ledger import get_checked
from cluster.named_queries import run_named
from cluster.parquet import refuse_older, say_older
from cluster.sql import run_sql
from cluster.stores import make_store, prefetch
from schemas.columns import VECTOR, Table
from schemas.errors import BadRef, MissingPackage, OlderPart, UsageError
from schemas.plans import Published, StoredPart
from schemas.tables import get_table

if TYPE_CHECKING:
    import polars
    import torch

_DECIDED = ("model", "site", "stage")
"""Columns that are constant in a stage of kind extract, so that whole stages are left out instead of rows."""


def open_lake(store: str, pipeline: str | None = None, run: str | None = None, all: bool = False) -> Lake:
    """Open a store for reading.

    store: a folder or s3://bucket/prefix. Without more, the newest finished run of every pipeline is read; `pipeline`
    takes only that one, `run` a run by name (small trials only so), `all` everything that was ever published.

    A run that failed in part is read for what it published, with a warning.

    Raises:
        UnknownRun: no such pipeline or run.
    """
    catalog = open_catalog(make_store(store), Scope(pipeline, run, all))
    for note in catalog.notes:
        warnings.warn(note, stacklevel=2)
    return Lake(catalog)


class Lake:
    """The published tables of one store, as of when it was opened."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def __repr__(self) -> str:
        return f"Lake({self._catalog.store.uri!r}, {self.tables()})"

    def tables(self) -> dict[str, int]:
        """Table name -> rows."""
        return self._catalog.tables

    def stages(self) -> pa.Table:
        """The catalog: one row per stage and table, with its subject, site, parameters and inputs."""
        return self._catalog.as_table()

    def table(self, name: str, where: Where | None = None, columns: Sequence[str] | None = None) -> LakeTable:
        """One table. `where` maps columns to the value, or the values, to keep; `columns` are those to read.

        Raises:
            UnknownTable: nobody has published it. UsageError: it has no such column.
        """
        return LakeTable(self._catalog, name, where or {}, columns)

    def weights(self, ref: str) -> bytes:
        """What a stage has published beside its tables, such as the safetensors file of `sae:<stage>` or `align:<stage>`.

        ref: as in the columns `sae` and `encoder`.

        Raises:
            BadRef: no stage of what was opened is named so, or it has published no file, or several.
            DamagedPart: the bytes are not those that were published.
        """
        stage = ref.rpartition(":")[2]
        found = [file for p in self._catalog.stages if p.stage.digest == stage for file in p.artifacts]
        if len(found) != 1:
            raise BadRef(
                f"{ref}: found {len(found)} files of such a stage; expected one, as of an SAE or a neuron encoder"
            )
        return get_checked(self._catalog.store, found[0])

    def sql(self, query: str) -> pa.Table:
        """The answer of one DuckDB query over the tables and `stages`. Raises UsageError."""
        return run_sql(self._catalog, query).read_all()

    def query(self, name: str, **args: Any) -> pa.Table:
        """The answer of a named query, as of `miclip sql --query`; `args` are its parameters. Raises UsageError."""
        return run_named(self._catalog, name, args).read_all()


class LakeTable:
    """Rows of one published table, in the order of stages and parts; nothing is read before it is asked for."""

    def __init__(self, catalog: Catalog, name: str, where: Where, columns: Sequence[str] | None) -> None:
        self._store = catalog.store
        self._table = get_table(name)
        self._where = dict(where)
        self._columns = list(columns) if columns is not None else self._table.schema.names
        for column in (*self._columns, *self._where):
            _check_column(self._table, column)
        self._stages = catalog.select(name, where)
        catalog.parts(name, where)

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of what is read."""
        return pa.schema([self._table.schema.field(name) for name in self._columns])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Arrow batches; the next parts are read ahead, memory stays at a few parts."""
        for _, table in prefetch(lambda item: self._read(*item), self._parts(), width=2):
            yield from table.to_batches()

    def arrow(self) -> pa.Table:
        """Everything as one Arrow table."""
        return pa.Table.from_batches(self.batches(), schema=self.schema)

    def polars(self) -> polars.DataFrame:
        """Everything as a Polars frame. Raises MissingPackage."""
        try:
            import polars
        except ImportError:
            raise MissingPackage("polars is not installed; pip install 'miclip[engines]'") from None
        frame = polars.from_arrow(self.arrow())
        assert isinstance(frame, polars.DataFrame)
        return frame

    def torch(self, column: str | None = None) -> torch.Tensor:
        """One column as a tensor: [rows, width] float32 of a vector column, [rows] of a number.

        column: the table's vector column if left out.

        Raises:
            UsageError: the column holds neither, or vectors of different widths: choose one model and site.
        """
        import torch

        array = self.numpy(column)
        return torch.from_numpy(array if array.flags.writeable else array.copy())

    def numpy(self, column: str | None = None) -> np.ndarray:
        """As `torch`, as an array."""
        vectors = [c for c in self._columns if c in self._table.vectors]
        column = column or (vectors[0] if len(vectors) == 1 else None)
        if column is None:
            raise UsageError(
                f"table {self._table.name} has {len(vectors)} vector columns here; name the column to read"
            )
        kind = _check_column(self._table, column)
        if kind == VECTOR:
            return self._vectors(column)
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise UsageError(f"column {column} holds {kind}, no numbers; read it with .arrow() or .polars()")
        return self._only(column).arrow()[column].to_numpy()

    def _only(self, column: str) -> LakeTable:
        narrow = object.__new__(LakeTable)
        narrow.__dict__.update({**self.__dict__, "_columns": [column]})
        return narrow

    def _vectors(self, column: str) -> np.ndarray:
        if any(self._filters(published) for published, _ in self._parts()):
            return _as_matrix(self._only(column).arrow()[column], self._table.name)
        return _read_vectors([partial(self._open, part) for _, part in self._parts()], column, self._table)

    def _parts(self) -> list[tuple[Published, StoredPart]]:
        return [(p, part) for p in self._stages for part in p.tables[self._table.name]]

    def _open(self, part: StoredPart, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
        filesystem, root = self._store.arrow_fs()
        return pq.ParquetFile(f"{root}/{part.key}", filesystem=filesystem, metadata=footer)

    def _filters(self, published: Published) -> dict[str, tuple[Any, ...]]:
        """What is left of `where` once the stage was chosen."""
        decided = _DECIDED if published.stage.kind == "extract" else ()
        return {column: wanted(value) for column, value in self._where.items() if column not in decided}

    def _read(self, published: Published, part: StoredPart) -> pa.Table:
        filesystem, root = self._store.arrow_fs()
        filters = None
        for column, values in self._filters(published).items():
            one = pc.field(column).isin(pa.array(values, self._table.schema.field(column).type))
            filters = one if filters is None else filters & one
        rows = pq.read_table(
            f"{root}/{part.key}",
            columns=self._columns,
            filters=filters,
            filesystem=filesystem,
            partitioning=None,
            schema=self._table.schema,  # so that a column which the part is older than is null
        )
        if any(rows[name].null_count for name in self._columns if not self.schema.field(name).nullable):
            refuse_older([name for name in self._columns if rows[name].null_count], self._table)
        return rows


def _check_column(table: Table, column: str) -> pa.DataType:
    if column not in table.schema.names:
        near = difflib.get_close_matches(column, table.schema.names, 1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"table {table.name} has no column {column!r}; it has {', '.join(table.schema.names)}{guess}")
    return table.schema.field(column).type


# ---------------------------------------------------------------- vectors, as fast as the cores decode


def _read_vectors(files: list[Callable[..., pq.ParquetFile]], column: str, table: Table) -> np.ndarray:
    """Row groups of one vector column decoded side by side into one preallocated [rows, width] array.

    files: each opens one part; a part is open only while it is read, because there may be more than a process may open.

    Raises:
        OlderPart: one was written before the table had the column.
    """
    tasks: list[tuple[Callable[..., pq.ParquetFile], pq.FileMetaData, int, int]] = []
    start = 0
    for opens, footer in prefetch(_footer, files):
        if column not in footer.schema.to_arrow_schema().names:
            raise OlderPart(say_older([column], table))
        for group in range(footer.num_row_groups):
            tasks.append((opens, footer, group, start))
            start += footer.row_group(group).num_rows
    if start == 0:
        return np.empty((0, 0), np.float32)
    width = _width(files, column)
    matrix = np.empty((start, width), np.float32)

    def read(task: tuple[Callable[..., pq.ParquetFile], pq.FileMetaData, int, int]) -> None:
        opens, footer, group, first = task
        with opens(footer) as file:
            got = file.read_row_group(group, columns=[column], use_threads=False)[column]
        values = _as_matrix(got, table.name, width)
        np.copyto(matrix[first : first + len(values)], values)

    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        for _ in pool.map(read, tasks):
            pass
    return matrix


def _footer(opens: Callable[..., pq.ParquetFile]) -> pq.FileMetaData:
    with opens() as file:
        return file.metadata


def _width(files: list[Callable[..., pq.ParquetFile]], column: str) -> int:
    for opens in files:
        with opens() as file:
            if file.metadata.num_rows:
                return len(next(file.iter_batches(1, columns=[column])).column(0)[0])
    return 0


def _as_matrix(column: pa.ChunkedArray, table: str, width: int | None = None) -> np.ndarray:
    """[rows, width] over the same memory where there is one chunk."""
    rows = len(column)
    if rows == 0:
        return np.empty((0, width or 0), np.float32)
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    values = array.flatten().to_numpy(zero_copy_only=False)
    width = len(array[0]) if width is None else width
    lengths_fit = len(values) == rows * width and bool(pc.all(pc.equal(pc.list_value_length(array), width)).as_py())
    if not lengths_fit:
        raise UsageError(f"vectors of {table} have different widths; choose one model and site with where={{...}}")
    return values.reshape(rows, width)
