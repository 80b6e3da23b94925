"""The list of verbs, and what holds for all of them."""

from __future__ import annotations

import typer

from cluster.cli import (
    common,
    comparing,
    doctor,
    explore,
    exports,
    looking,
    metrics,
    models,
    nightly,
    remote,
    report,
    running,
    saes,
    search,
    specs,
    tables,
    upkeep,
)

app = typer.Typer(
    name="miclip",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Batch jobs over zoos of CLIP and other vision models: typed specs in, Parquet out, SQL on top.\n\n"
    "[dim]Try it: miclip demo. Your own: miclip validate SPEC, plan SPEC, run SPEC, then miclip sql.[/dim]",
    epilog="Exit codes: 0 done, 1 some work failed, 2 bad spec or usage, 3 cluster or store unreachable, "
    "130 Ctrl-C or cancelled, 143 SIGTERM.",
)


@app.callback()
def _everything(
    debug: bool = typer.Option(False, "--debug", envvar="MICLIP_DEBUG", help="Show Python tracebacks."),
) -> None:
    common.debug = debug


_ALL = (
    running,
    remote,
    nightly,
    comparing,
    specs,
    looking,
    metrics,
    report,
    explore,
    tables,
    search,
    saes,
    exports,
    upkeep,
    models,
    doctor,
)
for _verbs in (module.VERBS for module in _ALL):
    _verbs.add_to(app)
