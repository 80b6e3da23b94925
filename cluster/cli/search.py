"""The verb that finds features by what their texts mean: search."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.amounts import count
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

if TYPE_CHECKING:
    from cluster.search import Found

VERBS = Verbs("Tables")


@VERBS.verb("search", "miclip search 'a striped object' --model demo:clip-p8 --min-iou 0.2")
def search(
    query: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for, in words.", show_default=False)],
    model: Annotated[str | None, typer.Option("--model", help="Only features of this model.")] = None,
    site: Annotated[str | None, typer.Option("--site", help="Only at this site, with or without its tokens.")] = None,
    sae: Annotated[str | None, typer.Option("--sae", help="Only of this SAE, as `miclip saes` lists it.")] = None,
    vlm: Annotated[str | None, typer.Option("--vlm", help="Only texts by this vision-language model.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="Only texts by topk, steering or informed.")] = None,
    min_iou: Annotated[
        float | None,
        typer.Option("--min-iou", min=0.0, max=1.0, help="Only texts that find their feature at least so well."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many texts.")] = 10,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", help="Which encoder of texts if maps were made by several, or the folder it has moved to."
        ),
    ] = None,
    store: StoreOption = None,
    pipeline: PipelineOption = None,
    run: RunOption = None,
    every: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find features by what the texts about them mean: those of a map_explanations stage, nearest first."""
    from cluster.search import search as find

    catalog = open_tables(store, pipeline, run, every)
    named = {"model": model, "site": site, "sae": sae, "vlm": vlm, "method": method}
    filters = {name: value for name, value in named.items() if value is not None}
    with errors().status("opening the encoder of the texts"), _loading():
        found = find(catalog, query, top, filters, min_iou, encoder)
    if found.unknown:
        unknown = ", ".join(found.unknown)
        errors().print(f"{found.encoder} does not know {unknown}; scores say nothing of that", style="yellow")
    if as_json:
        print_json({"query": query, **found._asdict()})
    else:
        _show(found)


@contextmanager
def _loading() -> Iterator[None]:
    """Without garbage collection, which looks again and again through all that libraries make while they load, and keep."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _show(found: Found) -> None:
    has_iou = any(hit["iou"] is not None for hit in found.hits)
    columns = ("score", "model", "site", "feature", "method", *(["iou"] if has_iou else []), "text")
    table = make_table(*columns, right=("score", "feature", "iou"), keep=("method",))
    for hit in found.hits:
        table.add_row(*(_cell(hit, column) for column in columns))
    console = screen()
    console.print(table)
    console.print(
        f"[dim]score: cosine with the query among {count(found.texts)} texts, by {found.encoder}; "
        "more: SQL on explanation_map[/dim]",
        soft_wrap=True,
    )


def _cell(hit: dict[str, Any], column: str) -> Any:
    from rich.text import Text

    value = hit[column]
    if column == "score":
        return f"{value:.3f}"
    if column == "iou":
        return "" if value is None else f"{value:.2f}"
    if column == "method" and hit["masking"] != "none":
        return f"{value} {hit['masking']}"
    return Text(str(value))
