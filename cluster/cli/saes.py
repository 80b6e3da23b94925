"""The verbs about sparse autoencoders: saes, export."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.amounts import count
from cluster.cli.common import (
    JsonOption,
    StoreOption,
    Verbs,
    make_table,
    open_existing,
    print_json,
    screen,
)

VERBS = Verbs("SAEs")
SHOWN_DIGITS = 12
TELLING_APART = {"l1": "g", "lr": "g", "seed": "d", "source": ""}
"""Shown where SAEs differ in them."""


class FormatName(StrEnum):
    """Formats that are written."""

    miclip = "miclip"
    saelens = "saelens"
    sparsify = "sparsify"
    dictionary_learning = "dictionary_learning"
    overcomplete = "overcomplete"


HOW_TO_LOAD = {
    "miclip": "name it miclip:{folder} in a spec of kind import_sae",
    "saelens": 'sae_lens.SAE.load_from_disk("{folder}")',
    "sparsify": 'sparsify.SparseCoder.load_from_disk("{folder}")',
    "dictionary_learning": 'dictionary_learning.utils.load_dictionary("{folder}", "cpu")',
    "overcomplete": "overcomplete.json names the class and its arguments; add b_dec.safetensors to reconstructions",
}


@VERBS.verb("saes", "miclip saes --store /data/lake")
def saes(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the sparse autoencoders of a store: trained and imported, with their quality on held-out images."""
    from cluster.saes import list_saes

    where = open_existing(store)
    rows = list_saes(where)
    if as_json:
        print_json(rows)
        return
    console = screen()
    if not rows:
        console.print(f"no SAEs in {where.uri} yet; run a spec with a stage of kind train_sae or import_sae")
        return
    differing = [name for name in TELLING_APART if len({row[name] for row in rows}) > 1]
    numbers = ("d", "latents", "k", "l1", "lr", "seed", "FVU", "L0", "dead")
    settings = ("d", "latents", "k", *differing)
    table = make_table("sae", "arch", *settings, "FVU", "L0", "dead", "model", "site", right=numbers, keep=("sae",))
    for row in rows:
        table.add_row(*_cells(row, differing))
    console.print(table)
    console.print(
        "[dim]take one out: miclip export SAE --format saelens --to DIR; all measures: table sae_summary[/dim]"
    )


def _cells(row: dict[str, Any], differing: list[str]) -> list[str]:
    def number(name: str, form: str) -> str:
        return "" if row[name] is None else format(row[name], form)

    return [
        row["sae"][: len("sae:") + SHOWN_DIGITS],
        row["arch"] or "",
        *(number(name, ",") for name in ("d", "latents", "k")),
        *(number(name, TELLING_APART[name]) for name in differing),
        number("fvu", ".4f"),
        number("l0", ".1f"),
        number("dead_fraction", ".0%"),
        row["model"],
        row["site"],
    ]


@VERBS.verb("export", "miclip export sae:3f2a9c1b --format saelens --to ./my-sae")
def export(
    sae: Annotated[
        str,
        typer.Argument(help="sae:STAGE as `miclip saes` lists it, or FORMAT:/path of any format.", show_default=False),
    ],
    format: Annotated[FormatName, typer.Option("--format", help="The library that will read it.", show_default=False)],
    to: Annotated[
        Path,
        typer.Option(
            "--to", metavar="DIR", help="A new folder; one that is there is never touched.", show_default=False
        ),
    ],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one sparse autoencoder as files of a library; also from one library's format to another's."""
    from cluster.saes import export as write

    sae = _absolute(sae)
    lake = open_existing(store) if store or (sae.startswith("sae:") and os.environ.get("MICLIP_STORE")) else None
    config = write(sae, format.value, to, lake)
    folder = to.resolve()
    if as_json:
        print_json(
            {"sae": sae, "format": format.value, "folder": str(folder), "config": config.model_dump(mode="json")}
        )
        return
    what = f"{config.arch}, {count(config.latents)} latents of width {count(config.d)}"
    screen().print(f"{folder}  {what}, for {format.value}", soft_wrap=True)
    screen().print(
        f"load it: {HOW_TO_LOAD[format.value].format(folder=folder)}", style="dim", soft_wrap=True, markup=False
    )


def _absolute(ref: str) -> str:
    """Files of other libraries may be named from where the command is given."""
    source, _, location = ref.partition(":")
    if source == "sae" or not location or location.startswith(("/", "s3://")):
        return ref
    return f"{source}:{Path(location).resolve()}"
