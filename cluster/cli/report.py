"""The verb that writes what runs published as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.amounts import short
from cluster.cli.common import JsonOption, StoreOption, Verbs, errors, open_existing, print_json, screen

VERBS = Verbs("Runs")


@VERBS.verb("report", "miclip report zoo-00003 --store /data/lake --to zoo.html")
def report(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run, by name; the newest finished run of every pipeline if left out.", show_default=False
        ),
    ] = None,
    store: StoreOption = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE.html", help="Where the page goes; else RUN.html here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file that opens from disk and asks nothing of the network: runs, models, charts and features."""
    from cluster.report.data import load_report
    from cluster.report.page import make_page
    from cluster.report.sections import SECTIONS
    from schemas.errors import UsageError

    data = load_report(open_existing(store), run)
    for note in data.catalog.notes:
        errors().print(note, style="yellow")
    path = to or Path(f"{run or 'report'}.html")
    page = make_page(data, SECTIONS).encode()
    try:
        path.write_bytes(page)
    except OSError as error:
        raise UsageError(f"--to {path}: {error.strerror or error}; name a file in a folder that is there") from None
    if as_json:
        print_json({"file": str(path.resolve()), "bytes": len(page), "runs": [f.state.run for f in data.runs]})
    else:
        screen().print(f"{path}  {short(len(page), 'B')}", soft_wrap=True, highlight=False)
