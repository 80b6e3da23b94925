"""CREATE VIEW or CREATE TABLE text with which other engines read the published parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from cluster.catalog import Catalog
from cluster.sql import quote, view_statement
from schemas import layout
from schemas.columns import Table
from schemas.tables import TABLES, get_table

Engine = Literal["duckdb", "spark", "trino", "polars", "datafusion"]


def make_views(catalog: Catalog, engine: Engine, empty: bool = False) -> str:
    """One statement per table in scope that has rows, over explicit files (trino: over a folder per stage), and one for `stages`.

    empty: also one for every other table there is, without rows, so that queries that name it run.

    Raises:
        DamagedPart: a part is gone or has another size.
    """
    write = _ENGINES[engine]
    blocks = [_HEADS[engine].format(store=catalog.store.uri)]
    there = {name: [catalog.store.url(part.key) for part in catalog.parts(name)] for name in catalog.tables}
    for name in TABLES:
        if there.get(name):
            blocks.append(write.parts(catalog, name, there[name]))
        elif empty or name in there:
            blocks.append(write.rows(name, get_table(name).schema.empty_table()))
    blocks.append(write.rows("stages", catalog.as_table()))
    return "\n\n".join(blocks) + "\n"


@dataclass(frozen=True)
class _Writer:
    """How one engine is told of a table: of parts (catalog, name, urls), and of rows that are written out (name, rows)."""

    parts: Callable[[Catalog, str, list[str]], str]
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


def _duckdb(catalog: Catalog, name: str, urls: list[str]) -> str:
    return view_statement(name, urls) + ";"


def _spark(catalog: Catalog, name: str, urls: list[str]) -> str:
    scheme = [url.replace("s3://", "s3a://", 1) if url.startswith("s3://") else f"file://{url}" for url in urls]
    selects = "\n  UNION ALL ".join(f"SELECT * FROM parquet.`{url.replace('`', '``')}`" for url in scheme)
    return f"CREATE OR REPLACE TEMPORARY VIEW {name} AS\n  {selects};"


def _trino(catalog: Catalog, name: str, urls: list[str]) -> str:
    table = get_table(name)
    columns = ",\n  ".join(f'"{c.name}" {_spell(c.type, _TRINO)}' for c in table.columns)
    stages = [p.stage for p in catalog.select(name) if p.tables[name]]
    made = [
        f"CREATE TABLE IF NOT EXISTS {name}_{s.digest} (\n  {columns}\n)\n"
        f"WITH (format = 'PARQUET', external_location = {quote(_folder(catalog, table, s))});"
        for s in stages
    ]
    union = "\n  UNION ALL ".join(f"SELECT * FROM {name}_{s.digest}" for s in stages)
    return "\n".join([*made, f"CREATE OR REPLACE VIEW {name} AS\n  {union};"])


def _folder(catalog: Catalog, table: Table, stage: object) -> str:
    probe = layout.table_prefix(table.name, stage)  # type: ignore[arg-type]
    url = catalog.store.url(probe.rstrip("/"))
    return (url if "://" in url else f"file://{url}") + "/"


def _in_sql(engine: Engine, create: str, types: Mapping[str, str], mark: str) -> Callable[[str, pa.Table], str]:
    """A view whose rows are literals; mark: what is around the name of a column."""

    def write(name: str, rows: pa.Table) -> str:
        columns = [(f"{mark}{field.name}{mark}", _spell(field.type, types)) for field in rows.schema]
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


def _polars(catalog: Catalog, name: str, urls: list[str]) -> str:
    files = "".join(f"\n    {url!r}," for url in urls)
    return f"{name} = pl.scan_parquet([{files}\n], hive_partitioning=False)"


def _polars_rows(name: str, rows: pa.Table) -> str:
    types = "".join(f"\n    {field.name!r}: {_spell(field.type, _POLARS)}," for field in rows.schema)
    return f"{name} = pl.LazyFrame({_columns(rows)}, schema={{{types}\n}})"


def _datafusion(catalog: Catalog, name: str, urls: list[str]) -> str:
    files = "".join(f"\n    {url!r}," for url in urls)
    return (
        f"frames = [ctx.read_parquet(path) for path in [{files}\n]]\n"
        "joined = frames[0]\nfor frame in frames[1:]:\n    joined = joined.union(frame)\n"
        f"ctx.register_view({name!r}, joined)"
    )


def _datafusion_rows(name: str, rows: pa.Table) -> str:
    types = "".join(f"\n    ({field.name!r}, {_spell(field.type, _PYARROW)})," for field in rows.schema)
    return (
        f"rows = pa.RecordBatch.from_pydict({_columns(rows)}, schema=pa.schema([{types}\n]))\n"
        f"ctx.register_record_batches({name!r}, [[rows]])"
    )


def _columns(rows: pa.Table) -> str:
    lines = "".join(f"\n    {column!r}: {values!r}," for column, values in rows.to_pydict().items())
    return f"{{{lines}\n}}"


# ---------------------------------------------------------------- names of types


def _spell(kind: pa.DataType, names: Mapping[str, str]) -> str:
    """The name of an Arrow type in a language: `names` has the plain ones, and how lists and maps are put around others."""
    if pa.types.is_list(kind):
        return names["list"].format(_spell(kind.value_type, names))
    if pa.types.is_map(kind):
        return names["map"].format(_spell(kind.key_type, names), _spell(kind.item_type, names))
    return names[str(kind)]


def _types(text: str) -> dict[str, str]:
    plain = ("string", "int32", "int64", "float", "double", "bool", "binary", "list", "map")
    return dict(zip(plain, text.split("; "), strict=True))


_TRINO = _types("varchar; integer; bigint; real; double; boolean; varbinary; array({}); map({}, {})")
_DUCKDB = _types("VARCHAR; INTEGER; BIGINT; FLOAT; DOUBLE; BOOLEAN; BLOB; {}[]; MAP({}, {})")
_SPARK = _types("STRING; INT; BIGINT; FLOAT; DOUBLE; BOOLEAN; BINARY; ARRAY<{}>; MAP<{}, {}>")
_POLARS = _types(
    "pl.String; pl.Int32; pl.Int64; pl.Float32; pl.Float64; pl.Boolean; pl.Binary; pl.List({}); "
    "pl.List(pl.Struct({{'key': {}, 'value': {}}}))"
)
_PYARROW = _types(
    "pa.string(); pa.int32(); pa.int64(); pa.float32(); pa.float64(); pa.bool_(); pa.binary(); pa.list_({}); pa.map_({}, {})"
)

_ENGINES = {
    "duckdb": _Writer(_duckdb, _in_sql("duckdb", "CREATE OR REPLACE VIEW", _DUCKDB, '"')),
    "spark": _Writer(_spark, _in_sql("spark", "CREATE OR REPLACE TEMPORARY VIEW", _SPARK, "`")),
    "trino": _Writer(_trino, _in_sql("trino", "CREATE OR REPLACE VIEW", _TRINO, '"')),
    "polars": _Writer(_polars, _polars_rows),
    "datafusion": _Writer(_datafusion, _datafusion_rows),
}
