"""The verb of every night: nightly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.amounts import count, short, some
from cluster.cli.common import (
    JsonOption,
    SetOption,
    SpecArgument,
    StoreOption,
    Verbs,
    errors,
    open_store,
    print_json,
    screen,
)
from cluster.cli.comparing import show_changes, show_drift
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
    from cluster.cli.session import Session
    from cluster.nightly import Evening, Held
    from cluster.notify import Notice
    from cluster.pipeline import RunReport
    from cluster.runs import RunState
    from cluster.stores import Store

VERBS = Verbs("Work")


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
            "--keep-runs",
            metavar="N",
            min=1,
            help="Drop older runs of this pipeline, as gc --keep-runs N --yes does; none if left out.",
            show_default=False,
        ),
    ] = None,
    pages: Annotated[
        str | None,
        typer.Option(
            "--pages",
            metavar="PLACE",
            help="Renew the pages of explore there: a folder or s3://bucket/prefix.",
            show_default=False,
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            "--webhook", metavar="URL", help="Gets one JSON message; else $MICLIP_WEBHOOK.", show_default=False
        ),
    ] = None,
    notify_on: Annotated[
        NotifyOn,
        typer.Option(
            "--notify-on", help="Tell it every night, of changes and whatever went wrong, or of the latter alone."
        ),
    ] = NotifyOn.always,
    executor: ExecutorOption = ExecutorName.ray,
    workers: WorkersOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = 0,
    address: AddressOption = None,
    patience: PatienceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a spec, say what changed since the last night and whether all of it is there, drop old runs, tell a webhook.

    One night of a pipeline at a time: a start that finds one at work says so and ends with 0. What was killed is gone on with.

    It ends with 1 if anything failed, is damaged or was not dropped; the rest is done all the same.
    """
    from cluster.cli.running import work
    from cluster.lease import make_pace
    from cluster.nightly import Held, begin, check_pages, conclude
    from cluster.notify import make_held_notice, make_notice
    from cluster.runs import RunOptions
    from cluster.spec_file import read_spec_file
    from cluster.stores.probe import check_writable

    teller = Teller(webhook or os.environ.get("MICLIP_WEBHOOK"), notify_on)
    with teller.of_errors(store or os.environ.get("MICLIP_STORE") or "", spec.stem):
        pace = make_pace(patience)
        file = read_spec_file(spec, overrides or ())
        where = open_store(store, file.pipeline.store)
    with teller.of_errors(where.uri, file.pipeline.name):
        check_writable(where)
        if pages is not None:
            check_pages(where, file.pipeline, pages)
        lease = begin(where, file.pipeline.name, pace)
    if isinstance(lease, Held):
        teller.tell(make_held_notice(where.uri, file.pipeline.name, lease.lines, lease.times))
        _show_held(lease, as_json)
        raise typer.Exit(0)
    options = RunOptions(executor=executor.value, workers=workers, cpus=cpus, gpus=gpus, address=address)
    with teller.of_errors(where.uri, file.pipeline.name), lease:  # which is free again before anybody is told
        report, session = work(file, where, options, quiet=as_json, pace=pace, begun=teller.begun)
        teller.ended(report.state)
        evening = conclude(where, report.state.run, keep_runs, pace, pages)
    code = report.exit_code or int(bool(evening.problems))
    failures = (*report.failures, *evening.problems)
    teller.tell(make_notice(where.uri, file.pipeline.name, report.state, evening.changes, code, failures))
    _show(report, session, evening, where, code, as_json)  # last: whoever reads it may be gone
    raise typer.Exit(code)


def _show_held(held: Held, as_json: bool) -> None:
    if as_json:
        print_json({"held": held.said, "times": held.times, "exit_code": 0})
        return
    for line in held.lines:
        screen().print(line, soft_wrap=True, markup=False)


class Teller:
    """Tells a webhook, if there is one and there is something to tell; what goes wrong is said and no more."""

    def __init__(self, url: str | None, on: NotifyOn) -> None:
        self._url, self._on = url, on
        self._run: str | None = None
        self._state: RunState | None = None

    def begun(self, run: str) -> None:
        """The night has a run, which is told of from here on."""
        self._run = run

    def ended(self, state: RunState) -> None:
        """How its run ended: whatever goes wrong after that does not change it."""
        self._state = state

    @contextmanager
    def of_errors(self, store: str, pipeline: str) -> Iterator[None]:
        """Tells of a night that ends by an error, also of one that cannot begin."""
        from cluster.notify import make_notice
        from cluster.runs import get_exit_code, status_of
        from schemas.errors import Interrupted

        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            status = status_of(error) if stopped or self._run else "NOT STARTED"
            said = (f"{type(error).__name__}: {error}",)
            code = get_exit_code(error)
            self.tell(make_notice(store, pipeline, self._state, None, code, said, status, self._run), hasty=stopped)
            raise

    def tell(self, notice: Notice, hasty: bool = False) -> None:
        """Send a notice; hasty: as `post` says."""
        from cluster.notify import post

        wanted = {NotifyOn.always: True, NotifyOn.news: notice.is_news, NotifyOn.failed: notice.is_bad}
        if self._url and wanted[self._on] and (problem := post(self._url, notice, hasty=hasty)):
            errors().print(problem, style="yellow", markup=False)


def _show(report: RunReport, session: Session, evening: Evening, store: Store, exit_code: int, as_json: bool) -> None:
    from cluster.cli.closing import report_json, show_report

    if as_json:
        print_json({**report_json(report, store), "exit_code": exit_code, **evening_json(evening)})
    else:
        show_report(report, store, session.log_file)
        show_evening(evening)


def evening_json(evening: Evening) -> dict[str, Any]:
    """What followed a run, for machines; features one by one are in the table `drift`."""
    return {
        "changes": evening.changes.model_dump(mode="json") if evening.changes else None,
        "drift": evening.drift.rows if evening.drift else [],
        "pages": evening.pages._asdict() if evening.pages else None,
        "damaged": [verdict._asdict() for verdict in evening.damaged],
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
    if evening.pages is not None:
        screen().print(f"pages renewed: {count(evening.pages.units)} units, {short(evening.pages.copied, 'B')} new")
    if evening.swept is not None:
        objects = sum(len(trash.keys) for trash in evening.swept.trash)
        runs = some(len(evening.swept.dropped), "old run")
        screen().print(f"{runs} dropped, {some(objects, 'object')} removed; {count(len(evening.swept.kept))} runs kept")
    for problem in evening.problems:
        errors().print(Text.assemble(("  ✗ ", "red"), problem), soft_wrap=True)
