"""The verbs that read: tables, sql, views, verify."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.amounts import count, short
from cluster.cli.common import (
    AllOption,
    JsonOption,
    PipelineOption,
    RunOption,
    StoreOption,
    Verbs,
    errors,
    make_table,
    open_tables,
    print_json,
    screen,
)
from schemas.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

VERBS = Verbs("Tables")
_NOTHING = "no finished run has published anything here; --all also reads what other runs have published"


@VERBS.verb("tables", "miclip tables activations")
def tables(
    table: Annotated[str | None, typer.Argument(help="Document the columns of this table.", show_default=False)] = None,
    store: StoreOption = None,
    pipeline: PipelineOption = None,
    run: RunOption = None,
    every: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """List the tables: what a row is, and how many there are in a store; with a name, its columns."""
    import os

    from schemas.tables import TABLES, get_table

    if table is not None:
        _document(get_table(table), as_json)
        return
    looked = store or os.environ.get("MICLIP_STORE")
    rows = open_tables(store, pipeline, run, every).tables if looked else {}
    if as_json:
        print_json(
            [
                {"table": t.name, "row": t.row, "rows": rows.get(t.name), "columns": t.schema.names}
                for t in TABLES.values()
            ]
        )
        return
    view = make_table("table", *(["rows"] if looked else []), "one row is", right=("rows",))
    for known in TABLES.values():
        if not looked or known.name in rows:
            view.add_row(known.name, *([count(rows[known.name])] if looked else []), known.row)
    console = screen()
    console.print(view)
    if looked and not rows:
        console.print(_NOTHING)
    console.print("[dim]columns: miclip tables NAME; what each stage published: SELECT * FROM stages[/dim]")


def _document(table: Any, as_json: bool) -> None:
    columns = [
        {"name": c.name, "type": str(c.type), "null": c.nullable, "meaning": c.meaning, "unit": c.unit}
        for c in table.columns
    ]
    if as_json:
        print_json({"table": table.name, "row": table.row, "columns": columns})
        return
    view = make_table("column", "type", "null", "meaning", "unit")
    for column in columns:
        kind = str(column["type"]).replace("element: ", "").replace(" not null", "")
        view.add_row(
            str(column["name"]), kind, "yes" if column["null"] else "", str(column["meaning"]), str(column["unit"])
        )
    console = screen()
    console.print(f"[bold]{table.name}[/bold]: one row is {table.row}")
    console.print(view)


class EngineName(StrEnum):
    """Engines that `views` and `sql --show` write for."""

    duckdb = "duckdb"
    spark = "spark"
    trino = "trino"
    polars = "polars"
    datafusion = "datafusion"


@VERBS.verb("sql", "miclip sql 'SELECT model, site, count(*) FROM top_images GROUP BY ALL'")
def sql(
    query: Annotated[
        str | None,
        typer.Argument(help="One DuckDB query over the published tables and `stages`.", show_default=False),
    ] = None,
    named: Annotated[str | None, typer.Option("--query", metavar="NAME", help="A query of the library.")] = None,
    args: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="NAME=VALUE", help="A parameter of it; may be repeated.", show_default=False),
    ] = None,
    show: Annotated[
        EngineName | None,
        typer.Option("--show", help="Print its text for an engine instead of asking.", show_default=False),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the library, or the parameters of --query.")] = False,
    store: StoreOption = None,
    pipeline: PipelineOption = None,
    run: RunOption = None,
    every: AllOption = False,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    parquet: Annotated[Path | None, typer.Option("--parquet", metavar="FILE", help="Write a Parquet file.")] = None,
) -> None:
    """Ask in SQL, or by the name of a query: published parts only, by default of the newest finished run of every pipeline."""
    from cluster.named_queries import fill, get_query, run_named
    from cluster.sql import run_sql

    if listed:
        _list_queries(named, as_json)
        return
    if (query is None) == (named is None):
        found = "neither" if query is None else "both"
        raise UsageError(
            f"expected one query, or --query NAME, found {found}; miclip sql --list says which names there are"
        )
    if as_json + as_csv + (parquet is not None) > 1:
        raise UsageError("an answer has one form; choose one of --json, --csv and --parquet")
    values = _values(args or [])
    if show is not None:
        typer.echo(fill(get_query(_only_named(named, "--show")), values, show.value))
        return
    if values:
        _only_named(named, "--arg")
    catalog = open_tables(store, pipeline, run, every)
    _answer(
        run_sql(catalog, query) if query is not None else run_named(catalog, str(named), values),
        as_json,
        as_csv,
        parquet,
    )


def _only_named(named: str | None, option: str) -> str:
    if named is None:
        raise UsageError(f"{option} is for a query of the library; name it with --query")
    return named


def _values(args: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for arg in args:
        name, equals, value = arg.partition("=")
        if not equals or not name:
            raise UsageError(f"--arg {arg}: expected NAME=VALUE")
        if name in values:
            raise UsageError(f"--arg {name} is given twice, as {values[name]!r} and as {value!r}; give it once")
        values[name] = value
    return values


def _answer(reader: pa.RecordBatchReader, as_json: bool, as_csv: bool, parquet: Path | None) -> None:
    from cluster.cli.answers import show_answer, write_csv, write_json, write_parquet

    if parquet is not None:
        rows = write_parquet(reader, parquet)
        errors().print(f"{count(rows)} rows in {parquet}")
    elif as_json:
        write_json(reader)
    elif as_csv:
        write_csv(reader)
    else:
        show_answer(reader)


def _list_queries(named: str | None, as_json: bool) -> None:
    """All queries in a line each, or one with its parameters."""
    from cluster.named_queries import get_query, load_queries

    found = list(load_queries().values()) if named is None else [get_query(named)]
    if as_json:
        print_json(
            [
                {
                    **{name: getattr(query, name) for name in ("name", "title", "about", "reads")},
                    "parameters": [vars(parameter) for parameter in query.parameters],
                }
                for query in found
            ]
        )
        return
    console = screen()
    if named is None:
        view = make_table("query", "answers", "parameters", keep=("query",))
        for query in found:
            view.add_row(
                query.name, query.title, ", ".join(p.name + "*" * (p.default is None) for p in query.parameters)
            )
        console.print(view)
        console.print("[dim]* must be given; more: miclip sql --list --query NAME[/dim]")
        return
    (query,) = found
    console.print(f"[bold]{query.name}[/bold]: {query.title}")
    console.print(query.about, markup=False)
    view = make_table("--arg", "type", "default", "meaning", keep=("--arg",))
    for parameter in query.parameters:
        default = "must be given" if parameter.default is None else repr(parameter.default)
        view.add_row(parameter.name, parameter.type, default, parameter.meaning)
    console.print(view)
    console.print(f"[dim]reads {', '.join(query.reads)}[/dim]")


@VERBS.verb("views", "miclip views --engine spark --store s3://lab/lake > views.sql")
def views(
    engine: Annotated[EngineName, typer.Option("--engine", help="Who will read.")] = EngineName.duckdb,
    empty: Annotated[
        bool,
        typer.Option(
            "--empty", help="Also tables that nothing has published, without rows, for queries that name them."
        ),
    ] = False,
    store: StoreOption = None,
    pipeline: PipelineOption = None,
    run: RunOption = None,
    every: AllOption = False,
) -> None:
    """Print the statements with which another engine reads the same parts."""
    from cluster.views import make_views

    catalog = open_tables(store, pipeline, run, every)
    if not catalog.tables:
        errors().print(_NOTHING)
    typer.echo(make_views(catalog, engine.value, empty), nl=False)


@VERBS.verb("verify", "miclip verify --store /data/lake --all")
def verify(
    store: StoreOption = None,
    pipeline: PipelineOption = None,
    run: RunOption = None,
    every: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read every published part and artifact again and compare its sha256; exit 1 and name what is damaged.

    Files beside the parts that no stage names are listed too: they are no damage, but plain globs would read them.
    """
    from rich.text import Text

    from cluster.catalog import HEAL, find_unnamed
    from cluster.catalog import verify as verify_all

    catalog = open_tables(store, pipeline, run, every)
    checked, size, damaged = 0, 0, []
    with errors().status("") as line:
        for verdict in verify_all(catalog):
            checked, size = checked + 1, size + verdict.bytes
            damaged += [verdict] if verdict.problem else []
            line.update(f"{count(checked)} objects, {short(size, 'B')}")
    unnamed = find_unnamed(catalog)
    if as_json:
        print_json({"objects": checked, "bytes": size, "damaged": [v._asdict() for v in damaged], "unnamed": unnamed})
    else:
        for verdict in damaged:
            of = (f"  of stage {verdict.stage}", "dim")
            line_of = Text.assemble(("damaged  ", "red"), f"{verdict.key}: {verdict.problem}", of)
            screen().print(line_of, soft_wrap=True)
        word = (
            f"[red]{len(damaged)} damaged[/red]"
            if damaged
            else "[green]whole[/green]"
            if checked
            else "nothing to check"
        )
        screen().print(f"{count(checked)} objects of {len(catalog.stages)} stages, {short(size, 'B')}: {word}")
        if damaged:
            screen().print(Text(HEAL, "dim"), soft_wrap=True)
        for key in unnamed:
            screen().print(Text.assemble(("unnamed  ", "yellow"), key), soft_wrap=True)
        if unnamed:
            screen().print("[dim]left by a worker that was killed; remove them if engines read folders by glob[/dim]")
    raise typer.Exit(1 if damaged else 0)
