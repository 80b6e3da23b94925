"""The verbs of every night: nightly, drift."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.amounts import count, some
from cluster.cli.common import (
    JsonOption,
    PipelineOption,
    SetOption,
    SpecArgument,
    StoreOption,
    Verbs,
    errors,
    make_table,
    open_existing,
    open_store,
    print_json,
    screen,
)
from cluster.cli.options import (
    AddressOption,
    CpusOption,
    ExecutorName,
    ExecutorOption,
    GpusOption,
    WorkersOption,
)
from cluster.cli.upkeep import PatienceOption, sweep_json

if TYPE_CHECKING:
    from cluster.changes import Change, Changes
    from cluster.drift import Drift
    from cluster.nightly import Evening
    from cluster.notify import Notice
    from cluster.runs import RunOptions
    from cluster.spec_file import SpecFile
    from cluster.stores import Store

VERBS = Verbs("Work")
MAX_FIGURES = 20
MAX_NAMES = 8


class NotifyOn(StrEnum):
    """When a webhook is told."""

    always = "always"
    news = "news"
    failed = "failed"


@VERBS.verb("nightly", "miclip nightly zoo.yaml --keep-runs 14 --store s3://lab/lake")
def nightly(
    spec: SpecArgument,
    overrides: SetOption = None,
    store: StoreOption = None,
    keep_runs: Annotated[
        int | None,
        typer.Option(
            "--keep-runs", min=1, help="Drop older runs of this pipeline, as gc --yes does.", show_default=False
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option("--webhook", help="Where a JSON message goes; else $MICLIP_WEBHOOK.", show_default=False),
    ] = None,
    notify_on: Annotated[
        NotifyOn, typer.Option("--notify-on", help="Every night; when anything changed or failed; or when it failed.")
    ] = NotifyOn.always,
    executor: ExecutorOption = ExecutorName.ray,
    workers: WorkersOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = 0,
    address: AddressOption = None,
    patience: PatienceOption = 90.0,
    as_json: JsonOption = False,
) -> None:
    """Run a spec, say what changed since the last night, and drop old runs; one at a time, whoever starts it how often.

    A second one at the same time says so and ends with 0; one that was killed is followed by whoever comes next.
    """
    from cluster.lease import Pace, take
    from cluster.nightly import lease_name
    from cluster.runs import RunOptions
    from cluster.spec_file import read_spec_file
    from cluster.stores.probe import check_writable
    from schemas.errors import LeaseHeld

    teller = Teller(webhook or os.environ.get("MICLIP_WEBHOOK"), notify_on)
    with teller.of_errors(store or os.environ.get("MICLIP_STORE") or "", spec.stem):
        file = read_spec_file(spec, overrides or ())
        where = open_store(store, file.pipeline.store)
        check_writable(where)
    options = RunOptions(executor=executor.value, workers=workers, cpus=cpus, gpus=gpus, address=address)
    pace = Pace(patience=patience)
    try:
        lease = take(where, lease_name(file.pipeline.name), pace)
    except LeaseHeld as held:
        if as_json:
            print_json({"held": str(held), "exit_code": 0})
        else:
            screen().print(str(held), soft_wrap=True, markup=False)
        raise typer.Exit(0) from None
    with teller.of_errors(where.uri, file.pipeline.name), lease:  # which is free again before anybody is told
        notice = _one_night(file, where, options, keep_runs, pace, as_json)
    teller.tell(notice)
    raise typer.Exit(notice.exit_code)


class Teller:
    """Tells a webhook, if there is one and there is something to tell; what goes wrong is said and no more."""

    def __init__(self, url: str | None, on: NotifyOn) -> None:
        self._url, self._on = url, on

    @contextmanager
    def of_errors(self, store: str, pipeline: str) -> Iterator[None]:
        """Tells of a night that ends by an error, also of one that cannot begin."""
        from cluster.notify import make_notice

        try:
            yield
        except BaseException as error:
            code = int(getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1))
            said = (f"{type(error).__name__}: {error}",)
            self.tell(make_notice(store, pipeline, None, None, code, said))
            raise

    def tell(self, notice: Notice) -> None:
        """Send a notice."""
        from cluster.notify import post

        wanted = {NotifyOn.always: True, NotifyOn.news: notice.is_news, NotifyOn.failed: notice.exit_code != 0}
        if self._url and wanted[self._on] and (problem := post(self._url, notice)):
            errors().print(problem, style="yellow", markup=False)


def _one_night(
    file: SpecFile, store: Store, options: RunOptions, keep_runs: int | None, pace: Any, as_json: bool
) -> Notice:
    from cluster.cli.closing import report_json, show_report
    from cluster.cli.running import work
    from cluster.nightly import conclude
    from cluster.notify import make_notice

    report, session = work(file, store, options, quiet=as_json)
    evening = conclude(store, report.state.run, keep_runs, pace)
    code = report.exit_code or int(bool(evening.problems))
    failures = (*report.failures, *evening.problems)
    notice = make_notice(store.uri, file.pipeline.name, report.state, evening.changes, code, failures)
    if as_json:
        print_json({**report_json(report, store), "exit_code": code, **evening_json(evening)})
    else:
        show_report(report, store, session.log_file, session.progress.cached)
        show_evening(evening)
    return notice


def evening_json(evening: Evening) -> dict[str, Any]:
    """What followed a run, for machines; features one by one are in the table `drift`."""
    rows = [row for row in evening.drift.rows if row["aspect"] != "feature"] if evening.drift else []
    return {
        "changes": evening.changes.model_dump(mode="json") if evening.changes else None,
        "drift": rows,
        "gc": sweep_json(evening.swept, True) if evening.swept else None,
        "problems": evening.problems,
    }


def show_evening(evening: Evening) -> None:
    """What followed a run, for people."""
    from rich.text import Text

    if evening.changes is not None:
        show_changes(evening.changes)
    if evening.drift is not None:
        show_drift(evening.drift)
    if evening.swept is not None:
        objects = sum(len(trash.keys) for trash in evening.swept.trash)
        runs = some(len(evening.swept.dropped), "old run")
        screen().print(f"{runs} dropped, {some(objects, 'object')} removed; {count(len(evening.swept.kept))} runs kept")
    for problem in evening.problems:
        errors().print(Text.assemble(("  ✗ ", "red"), problem), soft_wrap=True)


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

    console = screen()
    if changes.before is None:
        console.print("nothing to compare with: this is the first run of its pipeline")
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
    if not drift.rows:
        console.print(f"no figure moved in {some(drift.pairs, 'stage')} that both have and that are not the same")
    for note in drift.notes:
        console.print(Text(note, "yellow"), soft_wrap=True)


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


# ---------------------------------------------------------------- drift


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
    """Say how results moved between two runs, or between two models of one: figures, concepts, features of SAEs."""
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
                "rows": found.rows,
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
