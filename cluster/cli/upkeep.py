"""The verb that cleans up: gc."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.amounts import count, short, some
from cluster.cli.common import JsonOption, StoreOption, Verbs, errors, make_table, open_existing, print_json, screen

if TYPE_CHECKING:
    from cluster.gc import Sweep, Trash

VERBS = Verbs("Tables")
MAX_LINES = 30

PatienceOption = Annotated[
    float | None,
    typer.Option(
        "--patience",
        help="Seconds without a sign of life after which a process counts as dead; 90 if left out, and at least 1.5 times "
        "$MICLIP_STORE_BUDGET_S.",
        show_default=False,
    ),
]


@VERBS.verb("gc", "miclip gc --keep-runs 14 --store /data/lake")
def gc(
    keep_runs: Annotated[
        int,
        typer.Option(
            "--keep-runs",
            min=1,
            help="Of each pipeline the newest so many different tables stay; of runs that stand for the same tables the newest "
            "and the first.",
        ),
    ] = 7,
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", help="Drop runs of this pipeline alone.", show_default=False)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="RUN", help="A run that stays; may be repeated.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it. Without this nothing is removed.")] = False,
    store: StoreOption = None,
    patience: PatienceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what no kept run reaches, and with --yes remove it: old runs, their stages, leftovers of killed workers.

    What a kept run stands for stays, with all that it was made from and all that a run that goes on may need.
    """
    from cluster.gc import look, sweep
    from cluster.lease import make_pace
    from cluster.retention import Policy

    where = open_existing(store)
    policy = Policy(keep_runs, pipeline, frozenset(keep or ()))
    with errors().status("looking at what is there"):
        found = (sweep if yes else look)(where, policy, make_pace(patience))
    if as_json:
        print_json(sweep_json(found, yes))
    else:
        _show(found, yes)


def sweep_json(found: Sweep, removed: bool) -> dict[str, Any]:
    """A sweep for machines; without the keys, of which there may be millions."""

    def lines(trash: tuple[Trash, ...]) -> list[dict[str, Any]]:
        return [{"name": t.name, "about": t.about, "objects": len(t.keys), "bytes": t.bytes} for t in trash]

    return {
        "removed": removed,
        "kept": list(found.kept),
        "dropped": list(found.dropped),
        "stages": lines(found.stages),
        "leftovers": lines(found.leftovers),
        "records": lines(found.records),
        "unnamed": sorted(found.young),
        "objects": sum(len(t.keys) for t in found.trash),
        "bytes": found.bytes,
    }


def _show(found: Sweep, removed: bool) -> None:
    from rich.text import Text

    console = screen()
    table = make_table("", "what", "objects", "size", right=("objects", "size"))
    kinds = (("stage", found.stages), ("leftovers of", found.leftovers), ("records", found.records))
    rows = [(word, trash) for word, those in kinds for trash in those]
    for word, trash in rows[:MAX_LINES]:
        table.add_row(word, Text(trash.about), count(len(trash.keys)), short(trash.bytes, "B"))
    if rows:
        console.print(table)
    if len(rows) > MAX_LINES:
        console.print(f"[dim]and {count(len(rows) - MAX_LINES)} more; --json names all[/dim]")
    objects = sum(len(t.keys) for t in found.trash)
    verb = "removed" if removed else "would be removed"
    runs = f"{some(len(found.kept), 'run')} kept, {count(len(found.dropped))} dropped"
    console.print(f"{runs}; {some(objects, 'object')} {verb}, {short(found.bytes, 'B')}", soft_wrap=True)
    if found.young:
        console.print(
            f"[dim]{some(len(found.young), 'stage')} that no run names stay until more runs have finished without them[/dim]"
        )
    if objects and not removed:
        console.print("[dim]nothing was removed; the same with --yes removes it[/dim]")
