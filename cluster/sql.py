"""SQL over published tables with DuckDB, in memory and read-only: a view over an explicit list of parts per table."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import duckdb
import pyarrow as pa

from cluster.catalog import Catalog
from jobs.kinds import KINDS, get_kind
from schemas.errors import UsageError
from schemas.tables import TABLES, get_table

_READS = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI}

_OWN_CATALOG = re.compile(r'\nDid you mean "(?:pg|duckdb|sqlite|pragma)_[^\n]*')
"""DuckDB guesses at its internal tables; ours are listed instead."""


def run_sql(catalog: Catalog, query: str, empty: Collection[str] = ()) -> pa.RecordBatchReader:
    """Run one query; batches come as they are made.

    empty: tables that stand without rows, where nothing in scope has published them.

    Raises:
        UsageError: DuckDB refused it, it does more than read, or a name is no table; says what there is.
        DamagedPart: a part of a table it mentions is gone or has another size.
    """
    connection = duckdb.connect()
    try:
        statements = connection.extract_statements(query)
        if len(statements) != 1 or statements[0].type not in _READS:
            raise UsageError("miclip sql reads: expected one SELECT, FROM, DESCRIBE, SHOW or EXPLAIN statement")
        _register(connection, catalog, query, empty)
        relation = connection.sql(query)
        if relation is None:
            raise UsageError("the statement gives no rows")
        return relation.to_arrow_reader(8192)
    except duckdb.Error as error:
        absent = [name for name in _mentioned(query, list(TABLES)) if name not in {*catalog.tables, *empty}]
        if isinstance(error, duckdb.CatalogException) and absent:
            raise UsageError(say_unpublished(catalog, absent)) from None
        said = _OWN_CATALOG.sub("", str(error)).strip()
        raise UsageError(f"{said}\n\n{describe_tables(catalog, query)}") from None


def say_unpublished(catalog: Catalog, names: Collection[str]) -> str:
    """For each of these tables, which no stage in scope has published, the kinds of stages that make it; and what there is."""
    lines = []
    for name in names:
        kinds = [kind for kind in KINDS if any(name in made for made in _made_by(kind))]
        makes = f"a stage of kind {' or '.join(kinds)}" if kinds else "miclip nightly"
        lines.append(f"no published rows of {name}; {makes} makes them")
    lines.append("runs in scope are the newest finished ones; name an earlier run that has them with --run")
    return "\n".join([*lines, f"tables: {', '.join(['stages', *catalog.tables])}"])


def _made_by(kind: str) -> list[tuple[str, ...]]:
    """The tables of every round of every output of a kind."""
    return [tables for rounds in get_kind(kind).TABLES.values() for tables in rounds.values()]


def describe_tables(catalog: Catalog, query: str = "") -> str:
    """The tables in scope; with their columns if the query mentions them."""
    names = ["stages", *catalog.tables]
    lines = [f"tables: {', '.join(names)}"]
    for name in _mentioned(query, names):
        schema = catalog.as_table().schema if name == "stages" else get_table(name).schema
        lines.append(f"columns of {name}: {', '.join(schema.names)}")
    return "\n".join(lines)


def _mentioned(query: str, names: list[str]) -> list[str]:
    words = set(re.findall(r"\w+", query.lower()))
    return [name for name in names if name in words]


def _register(connection: duckdb.DuckDBPyConnection, catalog: Catalog, query: str, empty: Collection[str]) -> None:
    """Make the tables that the query mentions; all of them if it mentions none, as SHOW TABLES does."""
    filesystem = catalog.store.fsspec_fs()
    if filesystem is not None:
        connection.register_filesystem(filesystem)
    connection.execute("SET enable_progress_bar = false")
    names = list(catalog.tables)
    every = _mentioned(query, [*TABLES, "stages"]) or [*names, "stages"]
    for name in every:
        if name == "stages":
            connection.register("stages", catalog.as_table())
        elif name in names:
            parts = catalog.parts(name)
            if parts:
                connection.execute(view_statement(name, [catalog.store.url(part.key) for part in parts]))
            else:
                connection.register(name, get_table(name).schema.empty_table())
        elif name in empty:
            connection.register(name, get_table(name).schema.empty_table())


def view_statement(name: str, urls: list[str]) -> str:
    """CREATE VIEW over exactly these files."""
    files = ", ".join(quote(url) for url in urls)
    return f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM read_parquet([{files}], hive_partitioning = false)"


def quote(text: Any, engine: str = "duckdb") -> str:
    """A SQL string literal; in Spark backslashes are escapes, elsewhere they are letters."""
    if engine == "spark":
        return "'" + str(text).replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    return "'" + str(text).replace("'", "''") + "'"
