"""The library of named queries: one .sql file each, with a header that says what it answers and which parameters it has."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import pyarrow as pa

from cluster.catalog import Catalog
from cluster.sql import quote, run_sql, say_unpublished
from schemas.errors import UsageError
from schemas.tables import TABLES

TYPES: dict[str, type] = {"text": str, "int": int, "float": float}
_PARAMETER = re.compile(r":(\w+) (text|int|float)(?: = (.+?))? -- (.+)")
_OPTIONAL = re.compile(r"optional: (.+)")
_SLOT = re.compile(r"(?<![:\w]):([a-z]\w*)")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a query; without a default it must be given."""

    name: str
    type: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class NamedQuery:
    """One query of the library.

    optional: tables that stand empty where nothing has published them, if one that the query reads is there.
    """

    name: str
    title: str
    about: str
    parameters: tuple[Parameter, ...]
    optional: frozenset[str]
    text: str

    @property
    def reads(self) -> tuple[str, ...]:
        """The published tables that it names, and `stages`, in their order in the text."""
        named = re.findall(r"\b(?:FROM|JOIN)\s+(\w+)", self.text)
        return tuple(dict.fromkeys(name for name in named if name in TABLES or name == "stages"))


@cache
def load_queries() -> dict[str, NamedQuery]:
    """All queries by name, in the order of their names."""
    folder = files("cluster") / "queries"
    found = sorted((file.name.removesuffix(".sql"), file) for file in folder.iterdir() if file.name.endswith(".sql"))
    return {name: parse_query(name, file.read_text(encoding="utf-8")) for name, file in found}


def parse_query(name: str, text: str) -> NamedQuery:
    """A query from its file: lines of comment (title, what a row is, parameters, optional tables), then one SELECT."""
    lines = text.splitlines()
    header = [line.removeprefix("-- ") for line in lines if line.startswith("-- ")]
    body = "\n".join(lines[len(header) :]).strip()
    parameters, optional, about = [], frozenset[str](), []
    for line in header[1:]:
        if found := _PARAMETER.fullmatch(line):
            default = None if found[3] is None else _read(found[2], found[3].strip("'"))
            parameters.append(Parameter(found[1], found[2], default, found[4]))
        elif found := _OPTIONAL.fullmatch(line):
            optional = frozenset(found[1].split(", "))
        else:
            about.append(line)
    return NamedQuery(name, header[0], " ".join(about), tuple(parameters), optional, body)


def get_query(name: str) -> NamedQuery:
    """The query of this name.

    Raises:
        UsageError: there is none.
    """
    queries = load_queries()
    if name not in queries:
        near = difflib.get_close_matches(name, queries, 1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"no query is called {name!r}; there are {', '.join(queries)}{guess}")
    return queries[name]


def fill(query: NamedQuery, args: Mapping[str, Any], engine: str = "duckdb") -> str:
    """The text of a query with its parameters as literals, as `engine` reads them.

    args: parameter name -> value, or its text as on a command line; the others have their defaults.

    Raises:
        UsageError: a parameter is unknown or missing, or a value is not of its type.
    """
    known = {parameter.name: parameter for parameter in query.parameters}
    if unknown := [name for name in args if name not in known]:
        there = ", ".join(known) or "none"
        raise UsageError(f"query {query.name} has no parameter {unknown[0]!r}; there are {there}")
    values = {}
    for name, parameter in known.items():
        if args.get(name, parameter.default) is None:
            raise UsageError(
                f"query {query.name} needs {name} ({parameter.type}): {parameter.meaning}; give --arg {name}=…"
            )
        values[name] = _check(query, parameter, args[name]) if name in args else parameter.default
    return _SLOT.sub(lambda slot: _literal(values[slot[1]], engine), query.text)


def _check(query: NamedQuery, parameter: Parameter, value: Any) -> Any:
    try:
        return _read(parameter.type, value)
    except ValueError:
        raise UsageError(
            f"{parameter.name} of query {query.name} is {value!r}; expected {parameter.type}: {parameter.meaning}"
        ) from None


def _read(kind: str, value: Any) -> Any:
    if kind == "int" and isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    read = TYPES[kind](value)
    if kind == "float" and not abs(read) < float("inf"):
        raise ValueError(value)
    return read


def _literal(value: Any, engine: str) -> str:
    if isinstance(value, float):
        return f"CAST({value!r} AS DOUBLE)"
    return str(value) if isinstance(value, int) else quote(value, engine)


def run_named(catalog: Catalog, name: str, args: Mapping[str, Any]) -> pa.RecordBatchReader:
    """The answer of a named query over the tables in scope.

    Raises:
        UsageError: as `get_query` and `fill`, or what it reads has not been published. DamagedPart: as `run_sql`.
    """
    query = get_query(name)
    text = fill(query, args)
    there = {*catalog.tables, "stages"}
    missing = [table for table in query.reads if table not in there]
    needed = [table for table in missing if table not in query.optional]
    if needed or (missing and len(missing) == len(query.reads)):
        raise UsageError(say_unpublished(catalog, needed or missing))
    return run_sql(catalog, text, empty=missing)
