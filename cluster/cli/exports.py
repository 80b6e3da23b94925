"""The verbs that take results out for other software: export sae, export features, export iceberg."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cluster.amounts import count
from cluster.cli.common import (
    AllOption,
    JsonOption,
    PipelineOption,
    RunOption,
    StoreOption,
    Verbs,
    clean,
    make_table,
    open_existing,
    open_tables,
    print_json,
    screen,
)
from schemas.errors import UsageError

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


@exports.command(
    "features", epilog="Example: [bold]miclip export features sae:3f2a9c1b --to ./features --store /data/lake[/bold]"
)
@clean
def export_features(
    sae: Annotated[str, typer.Argument(help="sae:STAGE as `miclip saes` lists it.", show_default=False)],
    to: Annotated[
        Path,
        typer.Option(
            "--to", metavar="DIR", help="A new folder; one that is there is never touched.", show_default=False
        ),
    ],
    stage: Annotated[
        str | None, typer.Option("--stage", help="The stage of kind sae_features to read, if there are several.")
    ] = None,
    store: StoreOption = None,
    pipeline: PipelineOption = None,
    run: RunOption = None,
    every: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the features of an SAE, their images and explanations as JSON lines in the manner of Neuronpedia."""
    from cluster.neuronpedia import export_features as write

    done = write(open_tables(store, pipeline, run, every), sae, to.resolve(), stage)
    if as_json:
        print_json({"folder": str(to.resolve()), **done._asdict()})
        return
    screen().print(
        f"{to.resolve()}  {count(done.features)} features of {done.sae}, {count(done.activations)} activations, "
        f"{count(done.explanations)} explanations",
        soft_wrap=True,
    )


@exports.command("iceberg", epilog="Example: [bold]miclip export iceberg --to ./iceberg --store s3://lab/lake[/bold]")
@clean
def export_iceberg(
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="A folder for the catalog and its metadata; renewed if it is there."),
    ] = None,
    configured: Annotated[
        str | None,
        typer.Option("--catalog", metavar="NAME", help="Instead: a catalog that pyiceberg is configured for."),
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", help="Of the tables.")] = "miclip",
    store: StoreOption = None,
    pipeline: PipelineOption = None,
    run: RunOption = None,
    every: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Keep Apache Iceberg tables over the published parts, which stay where they are: only metadata is written."""
    from cluster.iceberg import count_parts, export_tables, open_configured, open_folder

    if (to is None) == (configured is None):
        raise UsageError("expected --to DIR, or --catalog NAME of one that pyiceberg is configured for")
    catalog = open_tables(store, pipeline, run, every)
    iceberg = open_folder(to, catalog) if to is not None else open_configured(str(configured), catalog)
    changes = export_tables(catalog, iceberg, namespace)
    where = str(to.resolve()) if to is not None else str(configured)
    if as_json:
        print_json({"catalog": where, "namespace": namespace, "tables": [change._asdict() for change in changes]})
        return
    table = make_table("table", "rows", "parts added", "removed", right=("rows", "parts added", "removed"))
    for change in changes:
        if change.added or change.removed:
            table.add_row(change.table, *(count(n) for n in change[1:]))
    added, removed = count_parts(changes)
    if added or removed:
        screen().print(table)
    screen().print(
        f"{where}  {count(len(changes))} tables in namespace {namespace}: {count(added)} parts added, {count(removed)} removed",
        soft_wrap=True,
    )
