"""What all verbs share: options, the way to a store, clean errors, and printing for people and for machines."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, TypeVar

import typer

from schemas.errors import MiclipError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cluster.catalog import Catalog
    from cluster.stores import Store

F = TypeVar("F", bound=Callable[..., Any])
debug = False
"""Set by --debug: errors keep their Python traceback."""

WIDE = 240
"""Columns where no terminal says how many there are, so that nothing is folded in a file or a pipe."""

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Folder or s3://bucket/prefix; else $MICLIP_STORE.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="A YAML spec.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Override one field; may be repeated.", show_default=False),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        help="Only the first images of every image set, which is indexed in whole all the same; a run of its own kind, "
        "read by name only.",
    ),
]
PipelineOption = Annotated[str | None, typer.Option("--pipeline", help="Only this pipeline's newest finished run.")]
RunOption = Annotated[str | None, typer.Option("--run", help="This run, by name (small trials are read only so).")]
AllOption = Annotated[bool, typer.Option("--all", help="Every published stage in the store.")]


@dataclass
class Verbs:
    """The verbs of one module, in order, to be added to the app."""

    panel: str
    verbs: list[tuple[str, Callable[..., Any], str]] = field(default_factory=list)
    groups: list[tuple[typer.Typer, str]] = field(default_factory=list)

    def verb(self, name: str, example: str) -> Callable[[F], F]:
        """Register a function as a verb; `example` is shown under --help."""

        def register(function: F) -> F:
            self.verbs.append((name, clean(function), example))
            return function

        return register

    def add_to(self, app: typer.Typer) -> None:
        """Add them all."""
        for name, function, example in self.verbs:
            app.command(name, epilog=f"Example: [bold]{example}[/bold]", rich_help_panel=self.panel)(function)
        for group, name in self.groups:
            app.add_typer(group, name=name, rich_help_panel=self.panel)


def clean(function: F) -> F:
    """Errors become one sentence and their exit code."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        as_json = bool(kwargs.get("as_json"))
        try:
            with _sigterm_heard():
                return function(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader left; say nothing more, not even at exit
            raise typer.Exit(0) from None
        except KeyboardInterrupt as error:
            _fail(str(error) or "Ctrl-C", "Interrupted", getattr(error, "exit_code", 130), as_json)
        except MiclipError as error:
            if debug:
                raise
            _fail(str(error), type(error).__name__, error.exit_code, as_json)
        except Exception as error:
            if debug:
                raise
            text = f"{type(error).__name__}: {error}\nThis is a fault of miclip, not of your spec; --debug before the verb shows where"
            _fail(text, type(error).__name__, 1, as_json)

    return run  # type: ignore[return-value]


class _Terminated(KeyboardInterrupt):
    """SIGTERM while no session listens for it; as at Ctrl-C what was begun is closed, and a lease given back."""

    exit_code = 143


@contextmanager
def _sigterm_heard() -> Iterator[None]:
    def raise_it(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated("SIGTERM")

    if threading.current_thread() is not threading.main_thread():  # others may not set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, kind: str, code: int, as_json: bool) -> NoReturn:
    if as_json:
        print_json({"error": kind, "message": message, "exit_code": code})
    else:
        from rich.text import Text

        lines = message.splitlines() or [kind]
        label = "interrupted" if code in (130, 143) else "error"
        console = errors()
        if len(lines) == 1 or label == "interrupted":
            console.print(Text.assemble((f"{label}: ", "bold red"), message), soft_wrap=True)
        else:
            console.print(Text(f"{label}:", "bold red"))
            console.print(Text("\n".join(f"  {line}" for line in lines)), soft_wrap=True)
    raise typer.Exit(code)


# ---------------------------------------------------------------- stores


def open_store(store: str | None, spec_store: str | None = None) -> Store:
    """The store of --store, else of the spec, else of $MICLIP_STORE.

    Raises:
        UsageError: none of them names one.
    """
    from cluster.stores import make_store

    uri = store or spec_store or os.environ.get("MICLIP_STORE")
    if not uri:
        raise UsageError(
            "no store: give --store DIR (or s3://bucket/prefix), set MICLIP_STORE, or write store: in the spec"
        )
    return make_store(uri)


def open_existing(store: str | None) -> Store:
    """As `open_store`, for reading: a local folder must be there.

    Raises:
        StoreMissing: it is not.
    """
    from schemas.errors import StoreMissing

    found = open_store(store)
    if "://" not in found.uri and not os.path.isdir(found.uri):
        raise StoreMissing(f"{found.uri} is not there; expected a store that a run has written to")
    return found


def open_tables(store: str | None, pipeline: str | None, run: str | None, every: bool) -> Catalog:
    """The published tables in scope; notes on their runs go to stderr.

    Raises:
        StoreMissing: as `open_existing`. UnknownRun: no such pipeline or run.
    """
    from cluster.catalog import Scope, open_catalog

    catalog = open_catalog(open_existing(store), Scope(pipeline, run, every))
    for note in catalog.notes:
        errors().print(note, style="yellow")
    return catalog


# ---------------------------------------------------------------- printing


def screen() -> Console:
    """The console on stdout."""
    return _console(sys.stdout)


def errors() -> Console:
    """The console on stderr."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, width=None if stream.isatty() else WIDE)


def print_json(data: Any) -> None:
    """Indented JSON on stdout."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def make_table(*columns: str, right: Sequence[str] = (), keep: Sequence[str] = ()) -> Table:
    """A quiet table: a header, no box around. Numbers (`right`) and the columns `keep` are never folded."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in columns:
        number = column in right
        table.add_column(
            column, justify="right" if number else "left", overflow="fold", no_wrap=number or column in keep
        )
    return table
