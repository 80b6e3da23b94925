"""The verb about sparse autoencoders: saes."""

from __future__ import annotations

from typing import Any

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
        "[dim]take one out: miclip export sae SAE --format saelens --to DIR; all measures: table sae_summary[/dim]"
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
