"""The verb that writes the explorer's pages, and serves them on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.amounts import count, short, some
from cluster.cli.common import (
    AllOption,
    JsonOption,
    PipelineOption,
    RunOption,
    StoreOption,
    Verbs,
    open_tables,
    print_json,
    screen,
)
from schemas.errors import UsageError

VERBS = Verbs("Runs")


@VERBS.verb("explore", "miclip explore --store /data/lake --to pages --open")
def explore(
    store: StoreOption = None,
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="PLACE", help="A folder or s3://bucket/prefix for the pages; renewed if they are there."
        ),
    ] = "explorer",
    open_: Annotated[
        bool, typer.Option("--open", help="Serve the folder on this machine and open it, until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of --open; 0 takes a free one.")] = 0,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            metavar="URL",
            help="Read parts where the store is served, such as https://host/lake, instead of copies in the folder.",
            show_default=False,
        ),
    ] = None,
    pipeline: PipelineOption = None,
    run: RunOption = None,
    all_: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write static pages, into a folder or a bucket, over what stages of kind explorer published: zoo, features, search, map, runs."""
    from cluster.explore.pages import write_pages
    from cluster.explore.place import make_place

    folder = make_place(to).folder
    if open_ and folder is None:
        raise UsageError(f"--open serves a folder of this machine, not {to}; leave it out, or write into a folder too")
    written = write_pages(open_tables(store, pipeline, run, all_), to, base_url)
    if as_json:
        print_json({"folder": str(folder.resolve()) if folder else to, **written._asdict()})
    else:
        what = f"{count(written.units)} units in {count(written.parts)} parts"
        new = "read where they are" if base_url else f"{short(written.copied, 'B')} new"
        gone = f", {some(written.removed, 'old part')} removed" if written.removed else ""
        screen().print(f"{to}  {what}, {new}{gone}", soft_wrap=True, highlight=False)
    if open_ and folder:
        _serve(folder, port)
    elif not as_json:
        screen().print(f"[dim]{_FOLDER_HINT.format(to) if folder else _BUCKET_HINT}[/dim]", soft_wrap=True)


_FOLDER_HINT = "look at it: miclip explore --to {} --open, or serve the folder by any server with byte ranges"
_BUCKET_HINT = "look at it: open index.html there, through whatever serves the bucket to browsers"


def _serve(folder: Path, port: int) -> None:
    """Until Ctrl-C."""
    import webbrowser

    from cluster.explore.server import FolderServer

    try:
        server = FolderServer(folder, port)
    except OSError as error:
        raise UsageError(f"--port {port}: {error.strerror or error}; name another, or 0 for a free one") from None
    with server:
        screen().print(f"{server.url}  [dim]Ctrl-C ends it[/dim]")
        webbrowser.open(server.url)
        server.serve_forever()
