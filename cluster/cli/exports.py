"""The verbs that take results out for other software: export sae, export features, export iceberg."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cluster.amounts import count
from cluster.cli.common import JsonOption, StoreOption, Verbs, clean, open_existing, print_json, screen

VERBS = Verbs("Tables")

exports = typer.Typer(no_args_is_help=True, help="Take an SAE, features or tables out for other software.")
VERBS.groups.append((exports, "export"))


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


@exports.command("sae", epilog="Example: [bold]miclip export sae sae:3f2a9c1b --format saelens --to ./my-sae[/bold]")
@clean
def export_sae(
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
