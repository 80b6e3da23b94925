"""SQL over published tables with DuckDB, in memory and read-only: a view over an explicit list of parts per table."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from cluster.catalog import Catalog
from cluster.older_parts import columns_of, find_needed
from cluster.parquet import say_older
from cluster.type_names import DUCKDB, spell
from jobs.kinds import KINDS, get_kind
from schemas.columns import Table
from schemas.errors import DamagedPart, MiclipError, OlderPart, UsageError
from schemas.tables import TABLES, get_table

_READS = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI}

_OWN_CATALOG = re.compile(r'\nDid you mean "(?:pg|duckdb|sqlite|pragma)_[^\n]*')
"""DuckDB guesses at its internal tables; ours are listed instead."""
_ABSENT = re.compile(r"Table with name (\w+) does not exist")
_OLDER = re.compile(r"table \w+: some rows were written before .*")
_UNREADABLE = re.compile(r'^(?:IO|HTTP|Invalid) Error|Failed to read file "')
"""How DuckDB begins, or what it says, where a file is gone, does not answer, or holds no Parquet."""


def run_sql(catalog: Catalog, query: str, empty: Collection[str] = ()) -> pa.RecordBatchReader:
    """Run one query; batches come as they are made.

    empty: tables that stand without rows, where nothing in scope has published them.

    Raises:
        UsageError: DuckDB refused it, it does more than read, or a name is no table; says what there is. Also while
            the answer is read, for not all is known of it before.
        OlderPart: it reads a column that some rows were written before and that may not be null; also then.
        DamagedPart: a part of a table it mentions is gone or has another size, or cannot be read; also then.
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
        return _saying(relation.to_arrow_reader(8192), catalog, query)
    except duckdb.Error as error:
        absent = [name for name in _mentioned(query, list(TABLES)) if name not in {*catalog.tables, *empty}]
        if isinstance(error, duckdb.CatalogException) and absent:
            raise UsageError(say_unpublished(catalog, absent)) from None
        raise _ours(error, catalog, query) from None


def _saying(reader: pa.RecordBatchReader, catalog: Catalog, query: str) -> pa.RecordBatchReader:
    """The same answer; what goes wrong while it is read is an error of ours."""

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from reader
        except (duckdb.Error, OSError, pa.ArrowException) as error:  # Arrow's stream hands on texts, not classes
            raise _ours(error, catalog, query) from None

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def _ours(error: Exception, catalog: Catalog, query: str) -> MiclipError:
    """What a person can do about an error of DuckDB, by what it says.

    Raises:
        DamagedPart: a part that the query reads has gone since it was looked up.
    """
    said = _OWN_CATALOG.sub("", str(error)).strip()
    if told := _OLDER.search(said):
        return OlderPart(told[0])
    names = _mentioned(query, list(catalog.tables))
    is_ours = '"' not in said or catalog.store.uri in said  # people may name files of their own in a query
    if names and is_ours and (type(error) is duckdb.Error or _UNREADABLE.search(said)):
        for name in names:
            catalog.parts(name)
        return DamagedPart(f"a part cannot be read; `miclip verify` names what is damaged: {said}")
    if absent := _ABSENT.search(said):
        return UsageError(_say_absent(catalog, absent[1]))
    return UsageError(f"{said}\n\n{_say_columns(catalog, query) or _say_tables(catalog)}")


def _say_absent(catalog: Catalog, name: str) -> str:
    """What a person may have meant by a name that is no table; DuckDB knows only those that the query names rightly."""
    near = difflib.get_close_matches(name, [*TABLES, "stages"], 1, cutoff=0.75)
    if name in KINDS:
        made = dict.fromkeys(table for tables in _made_by(name) for table in tables)
        return f"{name} is a kind of stages, no table; they make {', '.join(made)}\n{_say_tables(catalog)}"
    if near and near[0] not in [*catalog.tables, "stages"]:
        return f"no table is called {name}; if {near[0]} is meant: {say_unpublished(catalog, near)}"
    guess = f"; did you mean {near[0]}?" if near else ""
    return f"no table is called {name}{guess}\n{_say_tables(catalog)}"


def say_unpublished(catalog: Catalog, names: Collection[str]) -> str:
    """For each of these tables, which no stage in scope has published, the kinds of stages that make it; and what there is."""
    lines = []
    for name in names:
        kinds = [kind for kind in KINDS if any(name in made for made in _made_by(kind))]
        makes = f"a stage of kind {' or '.join(kinds)}" if kinds else "miclip nightly"
        lines.append(f"no published rows of {name}; {makes} makes them")
    lines.append("runs in scope are the newest finished ones; name an earlier run that has them with --run")
    return "\n".join([*lines, _say_tables(catalog)])


def _made_by(kind: str) -> list[tuple[str, ...]]:
    """The tables of every round of every output of a kind."""
    return [tables for rounds in get_kind(kind).TABLES.values() for tables in rounds.values()]


def _say_tables(catalog: Catalog) -> str:
    return f"tables: {', '.join(['stages', *catalog.tables])}"


def _say_columns(catalog: Catalog, query: str) -> str:
    """The columns of the tables that a query mentions, a line each."""
    lines = []
    for name in _mentioned(query, ["stages", *catalog.tables]):
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
                needed = find_needed(get_table(name), columns_of(catalog.store, parts))
                urls = [catalog.store.url(part.key) for part in parts]
                connection.execute(view_statement(get_table(name), urls, needed))
            else:
                connection.register(name, get_table(name).schema.empty_table())
        elif name in empty:
            connection.register(name, get_table(name).schema.empty_table())


def view_statement(table: Table, urls: Sequence[str], needed: Collection[str] = (), declared: bool = True) -> str:
    """CREATE VIEW over exactly these files.

    needed: columns that some of them were written before and that may not be null; a query that reads one fails and says
    what to do. declared: whether files may have other columns than are declared; what one was written before is null.
    """
    files = f"[{', '.join(quote(url) for url in urls)}], hive_partitioning = false"
    create = f"CREATE OR REPLACE VIEW {table.name} AS SELECT"
    if not declared:
        return f"{create} * FROM read_parquet({files})"
    columns = ", ".join(_never_null(c.name, table) if c.name in needed else f'"{c.name}"' for c in table.columns)
    types = ", ".join(
        f"{quote(c.name)}: {{name: {quote(c.name)}, type: {quote(spell(c.type, DUCKDB))}, default_value: NULL}}"
        for c in table.columns
    )
    return f"{create} {columns} FROM read_parquet({files}, schema = MAP {{{types}}})"


def _never_null(column: str, table: Table) -> str:
    refusal = f"error({quote(say_older([column], table))})"
    return f'CASE WHEN "{column}" IS NULL THEN {refusal} ELSE "{column}" END AS "{column}"'


def quote(text: Any, engine: str = "duckdb") -> str:
    """A SQL string literal; in Spark backslashes are escapes, elsewhere they are letters."""
    if engine == "spark":
        return "'" + str(text).replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    return "'" + str(text).replace("'", "''") + "'"
