"""CREATE VIEW or CREATE TABLE text with which other engines read the published parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from cluster.catalog import Catalog
from cluster.older_parts import are_alike, columns_of, find_needed
from cluster.parquet import say_older
from cluster.sql import quote, view_statement
from cluster.type_names import DUCKDB, POLARS, PYARROW, SPARK, TRINO, spell
from schemas import layout
from schemas.columns import Column, Table
from schemas.tables import TABLES, get_table

Engine = Literal["duckdb", "spark", "trino", "polars", "datafusion"]


def make_views(catalog: Catalog, engine: Engine, empty: bool = False) -> str:
    """One statement per table in scope that has rows, over explicit files (trino: over a folder per stage), and one for `stages`.

    empty: also one for every other table there is, without rows, so that queries that name it run.

    A column that some parts were written before is null there. If it may not be null, DuckDB and Spark refuse queries
    that read it and say what to do; for other engines a comment names it.

    Raises:
        DamagedPart: a part is gone or has another size.
    """
    write = _ENGINES[engine]
    blocks = [_HEADS[engine].format(store=catalog.store.uri)]
    there = {name: catalog.parts(name) for name in catalog.tables}
    for name in TABLES:
        if there.get(name):
            urls = [catalog.store.url(part.key) for part in there[name]]
            parts = _Parts(catalog, get_table(name), urls, columns_of(catalog.store, there[name]))
            blocks.append(write.parts(parts))
        elif empty or name in there:
            blocks.append(write.rows(name, get_table(name).schema.empty_table()))
    blocks.append(write.rows("stages", catalog.as_table()))
    return "\n\n".join(blocks) + "\n"


@dataclass(frozen=True)
class _Parts:
    """The parts of one table; found: the columns that each has."""

    catalog: Catalog
    table: Table
    urls: list[str]
    found: list[frozenset[str]]

    @property
    def alike(self) -> bool:
        """Whether all have the declared columns."""
        return are_alike(self.table, self.found)

    def remark(self, mark: str) -> str:
        """A line of comment that names columns with nulls which may have none, if there are such."""
        needed = find_needed(self.table, self.found)
        return f"{mark} {', '.join(needed)}: null where {say_older(needed, self.table)}\n" if needed else ""


@dataclass(frozen=True)
class _Writer:
    """How one engine is told of a table: of parts, and of rows that are written out (name, rows)."""

    parts: Callable[[_Parts], str]
    rows: Callable[[str, pa.Table], str]


_HEADS = {
    "duckdb": "-- tables published in {store} (on S3: LOAD httpfs and CREATE SECRET first)",
    "spark": "-- Spark SQL over {store} (on S3 the session needs the hadoop-aws package)",
    "trino": "-- Trino (Hive connector) over {store}, one external table per stage, not tested by us",
    "polars": "# Polars over {store} (run this file, or copy what you need)\nimport polars as pl",
    "datafusion": "# DataFusion over {store} (run this file, or copy what you need)\n"
    "import pyarrow as pa\nfrom datafusion import SessionContext\n\nctx = SessionContext()",
}


# ---------------------------------------------------------------- engines that are told in SQL


def _duckdb(parts: _Parts) -> str:
    needed = find_needed(parts.table, parts.found)
    return view_statement(parts.table, parts.urls, needed, declared=not parts.alike) + ";"


def _spark(parts: _Parts) -> str:
    scheme = [url.replace("s3://", "s3a://", 1) if url.startswith("s3://") else f"file://{url}" for url in parts.urls]
    columns = ["*" if parts.alike else _spark_columns(parts.table, names) for names in parts.found]
    selects = "\n  UNION ALL ".join(
        f"SELECT {wanted} FROM parquet.`{url.replace('`', '``')}`" for wanted, url in zip(columns, scheme, strict=True)
    )
    return f"CREATE OR REPLACE TEMPORARY VIEW {parts.table.name} AS\n  {selects};"


def _spark_columns(table: Table, names: Collection[str]) -> str:
    """The declared columns of a part that has these; Spark joins what it selects by position."""

    def write(column: Column) -> str:
        if column.name in names:
            return f"`{column.name}`"
        nothing = "NULL" if column.nullable else f"raise_error({quote(say_older([column.name], table), 'spark')})"
        return f"CAST({nothing} AS {spell(column.type, SPARK)}) AS `{column.name}`"

    return ", ".join(write(column) for column in table.columns)


def _trino(parts: _Parts) -> str:
    """By name, as Trino reads Parquet where it is not told otherwise; a column that a file lacks is null."""
    table, catalog = parts.table, parts.catalog
    columns = ",\n  ".join(f'"{c.name}" {spell(c.type, TRINO)}' for c in table.columns)
    stages = [p.stage for p in catalog.select(table.name) if p.tables[table.name]]
    made = [
        f"CREATE TABLE IF NOT EXISTS {table.name}_{s.digest} (\n  {columns}\n)\n"
        f"WITH (format = 'PARQUET', external_location = {quote(_folder(catalog, table, s))});"
        for s in stages
    ]
    union = "\n  UNION ALL ".join(f"SELECT * FROM {table.name}_{s.digest}" for s in stages)
    return parts.remark("--") + "\n".join([*made, f"CREATE OR REPLACE VIEW {table.name} AS\n  {union};"])


def _folder(catalog: Catalog, table: Table, stage: object) -> str:
    probe = layout.table_prefix(table.name, stage)  # type: ignore[arg-type]
    url = catalog.store.url(probe.rstrip("/"))
    return (url if "://" in url else f"file://{url}") + "/"


def _in_sql(engine: Engine, create: str, types: Mapping[str, str], mark: str) -> Callable[[str, pa.Table], str]:
    """A view whose rows are literals; mark: what is around the name of a column."""

    def write(name: str, rows: pa.Table) -> str:
        columns = [(f"{mark}{field.name}{mark}", spell(field.type, types)) for field in rows.schema]
        if not rows.num_rows:
            nothing = ", ".join(f"CAST(NULL AS {kind}) AS {column}" for column, kind in columns)
            return f"{create} {name} AS\n  SELECT {nothing} WHERE 1 = 0;"
        literals = ",\n    ".join(
            f"({', '.join(_literal(v, engine) for v in row.values())})" for row in rows.to_pylist()
        )
        cast = ", ".join(f"CAST({column} AS {kind}) AS {column}" for column, kind in columns)
        return (
            f"{create} {name} AS\n  SELECT {cast}\n  FROM (VALUES\n    {literals}\n  ) "
            f"AS t({', '.join(column for column, _ in columns)});"
        )

    return write


def _literal(value: str | int | None, engine: Engine) -> str:
    """The values of `stages` are texts and whole numbers."""
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else quote(value, engine)


# ---------------------------------------------------------------- engines that are told in Python


def _polars(parts: _Parts) -> str:
    files = "".join(f"\n    {url!r}," for url in parts.urls)
    declared = ""
    if not parts.alike:
        types = "".join(f"\n    {c.name!r}: {spell(c.type, POLARS)}," for c in parts.table.columns)
        declared = f", missing_columns='insert', extra_columns='ignore', schema={{{types}\n}}"
    scan = f"{parts.table.name} = pl.scan_parquet([{files}\n], hive_partitioning=False{declared})"
    return parts.remark("#") + scan


def _polars_rows(name: str, rows: pa.Table) -> str:
    types = "".join(f"\n    {field.name!r}: {spell(field.type, POLARS)}," for field in rows.schema)
    return f"{name} = pl.LazyFrame({_columns(rows)}, schema={{{types}\n}})"


def _datafusion(parts: _Parts) -> str:
    files = "".join(f"\n    {url!r}," for url in parts.urls)
    declared = "" if parts.alike else f", schema={_datafusion_schema(parts.table.schema)}"
    return parts.remark("#") + (
        f"frames = [ctx.read_parquet(path{declared}) for path in [{files}\n]]\n"
        "joined = frames[0]\nfor frame in frames[1:]:\n    joined = joined.union(frame)\n"
        f"ctx.register_view({parts.table.name!r}, joined)"
    )


def _datafusion_schema(schema: pa.Schema) -> str:
    """Every column may be null here: others would stop queries that do not read them too."""
    types = "".join(f"\n    ({field.name!r}, {spell(field.type, PYARROW)})," for field in schema)
    return f"pa.schema([{types}\n])"


def _datafusion_rows(name: str, rows: pa.Table) -> str:
    return (
        f"rows = pa.RecordBatch.from_pydict({_columns(rows)}, schema={_datafusion_schema(rows.schema)})\n"
        f"ctx.register_record_batches({name!r}, [[rows]])"
    )


def _columns(rows: pa.Table) -> str:
    lines = "".join(f"\n    {column!r}: {values!r}," for column, values in rows.to_pydict().items())
    return f"{{{lines}\n}}"


_ENGINES = {
    "duckdb": _Writer(_duckdb, _in_sql("duckdb", "CREATE OR REPLACE VIEW", DUCKDB, '"')),
    "spark": _Writer(_spark, _in_sql("spark", "CREATE OR REPLACE TEMPORARY VIEW", SPARK, "`")),
    "trino": _Writer(_trino, _in_sql("trino", "CREATE OR REPLACE VIEW", TRINO, '"')),
    "polars": _Writer(_polars, _polars_rows),
    "datafusion": _Writer(_datafusion, _datafusion_rows),
}
