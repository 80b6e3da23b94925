"""The verb that compares runs or models: drift; and what people see of changes, which a night prints too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.amounts import count, some
from cluster.cli.common import (
    JsonOption,
    PipelineOption,
    StoreOption,
    Verbs,
    make_table,
    open_existing,
    print_json,
    screen,
)

if TYPE_CHECKING:
    from cluster.changes import Change, Changes
    from cluster.drift_table import Drift
    from cluster.stores import Store

VERBS = Verbs("Work")
MAX_FIGURES = 20
MAX_NAMES = 8


@VERBS.verb("drift", "miclip drift zoo-00012 --against zoo-00005 --store /data/lake")
def drift(
    run: Annotated[
        str | None, typer.Argument(help="A finished run; the newest if left out.", show_default=False)
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="RUN", help="The run before, if left out.", show_default=False)
    ] = None,
    models: Annotated[
        tuple[str, str] | None,
        typer.Option("--models", metavar="A B", help="Two models of the run instead of two runs.", show_default=False),
    ] = None,
    pipeline: PipelineOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how results moved between two runs of a pipeline, or two models of one run: figures, concepts, features of SAEs.

    Without names, between the newest finished run and the one before it. A night keeps the same as the table drift.
    """
    from cluster.changes import changes_of, run_before
    from cluster.drift import compare_models, compare_runs
    from cluster.runs import load_state
    from schemas.errors import UsageError

    where = open_existing(store)
    name = _run_named(where, run, pipeline)
    if models is not None:
        if against is not None:
            raise UsageError("--models compares two models of one run; leave --against out")
        found, changes = compare_models(where, load_state(where, name), *models), None
    else:
        before = against or run_before(where, name)
        if before is None:
            raise UsageError(f"{name} is the first finished run of its pipeline; nothing to compare it with")
        changes = changes_of(where, name, before)
        found = compare_runs(where, load_state(where, before), load_state(where, name))
    if as_json:
        print_json(
            {
                "run": name,
                "changes": changes.model_dump(mode="json") if changes else None,
                "differ": found.pairs,
                "same": found.same,
                "rows": [row for batch in found.batches("") for row in batch.drop_columns("stage").to_pylist()],
                "notes": found.notes,
            }
        )
        return
    if changes:
        show_changes(changes)
    show_drift(found)


def _run_named(store: Store, run: str | None, pipeline: str | None) -> str:
    """The run that is meant. Raises UsageError where several pipelines have runs and none is named."""
    from cluster.runs import latest_runs, resolve_run
    from schemas.errors import UsageError

    if run is not None:
        return resolve_run(store, run)
    newest = [tables.run for tables in latest_runs(store, pipeline)]
    if len(newest) != 1:
        there = f"name one of {', '.join(newest)}, or --pipeline" if newest else "no run has finished yet"
        raise UsageError(f"{len(newest)} pipelines have finished runs in {store.uri}: {there}")
    return newest[0]


# ---------------------------------------------------------------- printing

_COLOURS = {
    "failed": "red",
    "still failing": "red",
    "recovered": "green",
    "new": "cyan",
    "changed": "cyan",
    "gone": "dim",
}


def show_changes(changes: Changes) -> None:
    """A line for each subject that is not as it was."""
    from rich.text import Text

    from cluster.runs import split_run

    console = screen()
    if changes.before is None:
        why = "this is the first run of its pipeline"
        if split_run(changes.run)[1] > 1:
            why = "no earlier run of its pipeline has finished (trials with --limit do not count)"
        console.print(f"nothing to compare with: {why}", soft_wrap=True)
        return
    same = f"{count(changes.unchanged)} as they were" if changes.unchanged else "none as it was"
    console.print(f"since {changes.before}: {same}, {some(len(changes.subjects), 'change')}")
    for change in changes.subjects:
        word = Text(f"  {change.change:<13}", _COLOURS[change.change])
        console.print(Text.assemble(word, f" {change.subject}", (_because(change), "dim")), soft_wrap=True)


def _because(change: Change) -> str:
    where = ", ".join(change.cells[:MAX_NAMES]) + (", …" if len(change.cells) > MAX_NAMES else "")
    return f"  {where}" + (f": {'; '.join(change.why[:3])}" if change.why else "")


def show_drift(drift: Drift) -> None:
    """The figures that moved most, concepts that came and went, and features that are still there."""
    from rich.text import Text

    console = screen()
    figures = sorted((row for row in drift.rows if row["aspect"] == "metric"), key=_movement, reverse=True)
    if figures:
        table = make_table("cell", "figure", "of", "before", "after", "change", right=("before", "after", "change"))
        for row in figures[:MAX_FIGURES]:
            cells = (Text(row["cell"]), Text(row["item"]), Text(row["setting"]))
            table.add_row(*cells, _figure(row["before"]), _figure(row["after"]), _difference(row))
        console.print(table)
    if len(figures) > MAX_FIGURES:
        console.print(f"[dim]and {count(len(figures) - MAX_FIGURES)} more figures; --json has all[/dim]")
    for (cell, setting, status), names in _concepts(drift.rows).items():
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        console.print(
            Text.assemble(f"{cell}: concepts {status}: {', '.join(names[:MAX_NAMES])}{more}", (f"  {setting}", "dim")),
            soft_wrap=True,
        )
    console.print(_compared(drift))
    for note in drift.notes:
        console.print(Text(note, "yellow"), soft_wrap=True)


def _compared(drift: Drift) -> str:
    """How many stages the figures are of, and how many of these need none."""
    stages = some(drift.pairs + drift.same, "stage")
    if not drift.pairs:
        return f"nothing moved: {stages} compared, all the same" if drift.same else "no stage was compared"
    moved = "" if drift.rows else "nothing moved: "
    return f"{moved}{stages} compared, {count(drift.same)} of them the same"


def _movement(row: dict[str, Any]) -> float:
    """How far a figure moved, relative to the larger of both values; what came or went first."""
    before, after = row["before"], row["after"]
    if before is None or after is None:
        return 2.0
    return abs(after - before) / max(abs(after), abs(before), 1e-12)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _difference(row: dict[str, Any]) -> str:
    return "" if None in (row["before"], row["after"]) else f"{row['after'] - row['before']:+.4g}"


def _concepts(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], list[str]]:
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row["aspect"] == "concept":
            found[row["cell"], row["setting"], row["status"]].append(row["item"])
    return dict(found)
