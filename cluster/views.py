"""CREATE VIEW or CREATE TABLE text with which other engines read the published parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pyarrow as pa

from cluster.catalog import Catalog
from cluster.sql import quote, view_statement
from schemas import layout
from schemas.columns import Table
from schemas.tables import get_table

Engine = Literal["duckdb", "spark", "trino", "polars", "datafusion"]


def make_views(catalog: Catalog, engine: Engine) -> str:
    """One statement per table in scope that has rows, over explicit files (trino: over a folder per stage).

    Raises:
        DamagedPart: a part is gone or has another size.
    """
    write = _ENGINES[engine]
    blocks = [_HEADS[engine].format(store=catalog.store.uri)]
    for name in catalog.tables:
        urls = [catalog.store.url(part.key) for part in catalog.parts(name)]
        if urls:
            blocks.append(write(catalog, name, urls))
    return "\n\n".join(blocks) + "\n"


_HEADS = {
    "duckdb": "-- tables published in {store} (on S3: LOAD httpfs and CREATE SECRET first)",
    "spark": "-- Spark SQL over {store} (on S3 the session needs the hadoop-aws package)",
    "trino": "-- Trino (Hive connector) over {store}, one external table per stage, not tested by us",
    "polars": "# Polars over {store} (run this file, or copy what you need)\nimport polars as pl",
    "datafusion": "# DataFusion over {store} (run this file, or copy what you need)\nfrom datafusion import SessionContext\n\nctx = SessionContext()",
}


def _duckdb(catalog: Catalog, name: str, urls: list[str]) -> str:
    return view_statement(name, urls) + ";"


def _spark(catalog: Catalog, name: str, urls: list[str]) -> str:
    scheme = [url.replace("s3://", "s3a://", 1) if url.startswith("s3://") else f"file://{url}" for url in urls]
    selects = "\n  UNION ALL ".join(f"SELECT * FROM parquet.`{url.replace('`', '``')}`" for url in scheme)
    return f"CREATE OR REPLACE TEMPORARY VIEW {name} AS\n  {selects};"


def _trino(catalog: Catalog, name: str, urls: list[str]) -> str:
    table = get_table(name)
    columns = ",\n  ".join(f'"{c.name}" {_trino_type(c.type)}' for c in table.columns)
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


def _trino_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"array({_trino_type(kind.value_type)})"
    if pa.types.is_map(kind):
        return f"map({_trino_type(kind.key_type)}, {_trino_type(kind.item_type)})"
    return _TRINO[str(kind)]


_TRINO = {
    "string": "varchar",
    "int16": "smallint",
    "int32": "integer",
    "int64": "bigint",
    "float": "real",
    "double": "double",
    "bool": "boolean",
    "binary": "varbinary",
}


def _polars(catalog: Catalog, name: str, urls: list[str]) -> str:
    files = "".join(f"\n    {url!r}," for url in urls)
    return f"{name} = pl.scan_parquet([{files}\n], hive_partitioning=False)"


def _datafusion(catalog: Catalog, name: str, urls: list[str]) -> str:
    files = "".join(f"\n    {url!r}," for url in urls)
    return (
        f"frames = [ctx.read_parquet(path) for path in [{files}\n]]\n"
        "joined = frames[0]\nfor frame in frames[1:]:\n    joined = joined.union(frame)\n"
        f"ctx.register_view({name!r}, joined)"
    )


_ENGINES: dict[str, Callable[[Catalog, str, list[str]], str]] = {
    "duckdb": _duckdb,
    "spark": _spark,
    "trino": _trino,
    "polars": _polars,
    "datafusion": _datafusion,
}
