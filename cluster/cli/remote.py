"""The verbs for work that runs elsewhere: submit, watch, cancel."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.amounts import duration
from cluster.cli.common import (
    JsonOption,
    LimitOption,
    SetOption,
    SpecArgument,
    StoreOption,
    Verbs,
    errors,
    open_existing,
    open_store,
    print_json,
    screen,
)
from cluster.cli.options import DashboardOption, WorkersOption
from cluster.cli.upkeep import PatienceOption

if TYPE_CHECKING:
    from cluster.lease import Pace
    from cluster.on_ray.jobs import ClusterJobs
    from cluster.remote import Submission
    from cluster.runs import RunOptions, RunState
    from cluster.spec_file import SpecFile
    from cluster.stores import Store

VERBS = Verbs("Clusters")
ShipOption = Annotated[bool, typer.Option("--ship", help="Send this package along; else nodes have it installed.")]
PythonOption = Annotated[str, typer.Option("--python", help="The interpreter of the nodes.")]
GrowsOption = Annotated[
    bool, typer.Option("--grows", help="The cluster adds machines on demand: do not compare with those of today.")
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Watch it to its end; its exit code is ours.")]
POLL_SECONDS = 2.0


@VERBS.verb("submit", "miclip submit zoo.yaml --address http://head:8265 --store s3://lab/lake")
def submit(
    spec: SpecArgument,
    overrides: SetOption = None,
    limit: LimitOption = None,
    store: StoreOption = None,
    workers: WorkersOption = None,
    address: DashboardOption = None,
    ship: ShipOption = False,
    python: PythonOption = "python",
    grows: GrowsOption = False,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Hand a spec to a running Ray cluster and return at once; the same spec again says that it runs already."""
    from cluster.runs import RunOptions
    from cluster.spec_file import read_spec_file

    file = read_spec_file(spec, overrides or (), limit)
    options = RunOptions(workers=workers, python=python, ship=ship)
    where = open_store(store, file.pipeline.store)
    raise typer.Exit(hand_over(file, where, options, address, grows, wait, as_json))


def hand_over(
    file: SpecFile,
    store: Store,
    options: RunOptions,
    address: str | None,
    grows: bool = False,
    wait: bool = False,
    as_json: bool = False,
) -> int:
    """Submit a spec, and say what to type next or watch it to its end; returns the exit code."""
    from cluster.remote import submit as submit_spec
    from cluster.watching import watch_pace

    jobs = _connect(address)
    with file.placed():
        done = submit_spec(file, store, options, jobs, grows)
    said = {**asdict(done), "store": store.uri}
    if as_json and wait:
        typer.echo(json.dumps(said))  # a line, as the events that follow are
    elif as_json:
        print_json(said)
    else:
        _show_submission(done, store)
    return _watch(store, _wait_for_run(store, done.id, jobs), watch_pace(), as_json) if wait else 0


def _show_submission(done: Submission, store: Store) -> None:
    from rich.text import Text

    word = ("submitted", "bold green") if done.new else ("runs already", "bold cyan")
    console = screen()
    console.print(Text.assemble((f"{done.id} ", "bold"), word, f"  {done.url}  store {store.uri}"), soft_wrap=True)
    for verb in ("watch", "cancel"):
        console.print(
            Text(f"  miclip {verb} {done.id} --store {store.uri} --address {done.url}", "dim"), soft_wrap=True
        )
    console.print(Text(f"  miclip logs {done.id} --driver --address {done.url}", "dim"), soft_wrap=True)


# ---------------------------------------------------------------- watch


@VERBS.verb("watch", "miclip watch zoo-00003 --store s3://lab/lake")
def watch(
    run: Annotated[
        str | None, typer.Argument(help="A run, or a submission; the one that runs if left out.", show_default=False)
    ] = None,
    store: StoreOption = None,
    address: DashboardOption = None,
    patience: PatienceOption = None,
    as_json: JsonOption = False,
) -> None:
    """See a run go, from any machine that reaches its store; ends with the exit code of the run."""
    from cluster.runs import resolve_run
    from cluster.watching import watch_pace
    from schemas.errors import UnknownRun

    where, pace = open_store(store) if address else open_existing(store), watch_pace(patience)
    try:
        name = _find_running(where, pace) if run is None else resolve_run(where, run)
    except UnknownRun:
        if run is None or address is None:
            raise
        name = _wait_for_run(where, run, _connect(address))
    raise typer.Exit(_watch(where, name, pace, as_json))


def _find_running(store: Store, pace: Pace) -> str:
    """The run that goes on now. Raises UnknownRun where none does, or several do."""
    from cluster.runs import find_state, list_runs
    from cluster.stores.base import prefetch
    from cluster.watching import find_living
    from schemas.errors import UnknownRun

    names = list_runs(store)
    states = [state for _, state in prefetch(lambda name: find_state(store, name), names) if state]
    running = [state.run for state in states if state.status == "RUNNING"]
    if len(running) > 1:  # some of them may have been killed
        errors().print(f"looking for signs of life of {', '.join(running)}", style="dim", soft_wrap=True)
        running = find_living(store, running, pace)
    if len(running) == 1:
        return running[0]
    if running:
        raise UnknownRun(f"{len(running)} runs go on in {store.uri}; say which of {', '.join(running)}")
    there = f"give the name of one, such as {', '.join(names[-5:])}" if names else "it has none yet"
    raise UnknownRun(f"no run goes on in {store.uri}; {there}")


def _wait_for_run(store: Store, submission: str, jobs: ClusterJobs) -> str:
    """The run of a submission, once its driver has begun it.

    Raises:
        WorkFailed: the driver ended before that; its last words are in the message.
    """
    from cluster.runs import resolve_run
    from schemas.errors import UnknownRun, WorkFailed

    said = ""
    while True:
        job = jobs.get(submission)  # before the store is asked: a job that has ended begins no run any more
        try:
            return resolve_run(store, submission)
        except UnknownRun:
            if job is None:
                raise
        if job.ended:
            words = "\n".join(jobs.logs(submission).strip().splitlines()[-15:])
            raise WorkFailed(f"{submission} ended ({job.status}) before its run began: {job.message}\n{words}")
        if (now := f"{job.status}: {job.message}") != said:
            said = now
            errors().print(f"{submission} {now}", style="dim", markup=False, soft_wrap=True)
        time.sleep(POLL_SECONDS)


def _watch(store: Store, run: str, pace: Pace, as_json: bool) -> int:
    from cluster.cli.progress import RunProgress
    from cluster.runs import find_state
    from cluster.watching import follow_events

    failures: list[str] = []
    with RunProgress(sys.stderr, quiet=as_json) as progress:
        progress.say(f"run {run}  store {store.uri}", "dim")
        if words := _seems_lost(store, run, pace):
            progress.say(words, "yellow")

        def say_silent(seconds: float) -> None:
            progress.say(f"last sign of life {duration(seconds)} ago; lost after {duration(pace.patience)}", "yellow")

        for event in follow_events(store, run, pace, say_silent):
            progress(event)
            failures = event.get("failures", failures)
            if as_json:
                typer.echo(json.dumps(event, ensure_ascii=False))
    state = find_state(store, run)
    if state is not None and not as_json:
        _show_end(store, state, failures)
    return _get_code(state)


def _seems_lost(store: Store, run: str, pace: Pace) -> str:
    """What to say to who waits for a driver whose last sign of life is old by the clocks; which may be wrong."""
    from cluster.runs import find_state
    from cluster.watching import seen_status

    state = find_state(store, run)
    if state is None or seen_status(store, state) != "LOST":
        return ""
    return f"{run} seems to be lost; waiting {duration(pace.patience)} for a sign of life"


def _show_end(store: Store, state: RunState, failures: list[str]) -> None:
    from rich.text import Text

    from cluster.cli.closing import show_report
    from cluster.cli.looking import show_head
    from cluster.pipeline import RunReport

    if state.status in ("DONE", "FAILED"):
        show_report(RunReport(state, failures), store, None)
    else:
        show_head(state, "LOST" if state.status == "RUNNING" else state.status)  # else we would be watching it yet
        screen().print(Text(f"go on: miclip retry {state.run} --store {store.uri}", "dim"), soft_wrap=True)


def _get_code(state: RunState | None) -> int:
    """The exit code of a run that has ended, or whose driver is gone without a word."""
    from schemas.errors import ClusterUnreachable

    if state is None or state.status == "RUNNING":
        return ClusterUnreachable.exit_code
    return state.exit_code if state.exit_code is not None else int(state.status != "DONE")


# ---------------------------------------------------------------- cancel


@VERBS.verb("cancel", "miclip cancel zoo-00003 --store s3://lab/lake")
def cancel(
    run: Annotated[str, typer.Argument(help="A run, or a submission, by name.", show_default=False)],
    store: StoreOption = None,
    address: DashboardOption = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="How long its driver may take to answer.")] = 30.0,
    patience: PatienceOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a run, wherever its driver is: through the store; if it does not answer, and if asked twice, by its cluster."""
    from cluster.cli.looking import show_head
    from cluster.remote import cancel as cancel_run
    from cluster.runs import find_state, load_options, resolve_run
    from cluster.watching import watch_pace
    from schemas.errors import ClusterUnreachable, UnknownRun

    pace = watch_pace(patience)
    jobs = _connect(address) if address else None
    where = open_store(store) if jobs else open_existing(store)
    try:
        name = resolve_run(where, run)
    except UnknownRun:
        if jobs is None or (job := jobs.get(run)) is None:
            raise
        jobs.stop(job.id)  # its driver has not begun its run
        typer.echo(f"{job.id} was stopped before its run began")
        return
    if jobs is None and (url := load_options(where, name).jobs):
        jobs = _reach(url)
    if words := _seems_lost(where, name, pace):
        errors().print(words, style="dim", markup=False, soft_wrap=True)
    status = cancel_run(where, name, seconds, jobs, pace)
    state = find_state(where, name)
    if status == "RUNNING":
        raise ClusterUnreachable(
            f"{name} was asked to end; its driver lives and has not answered for {seconds:.0f} s. It ends when it looks at "
            f"{where.uri} again" + ("" if jobs else "; with --address its cluster can end it")
        )
    if as_json:
        print_json({"run": name, "status": status})
    elif state is not None:
        show_head(state, status)


def _connect(address: str | None) -> ClusterJobs:
    from cluster.on_ray.jobs import ClusterJobs  # which loads Ray

    return ClusterJobs(address)


def _reach(url: str) -> ClusterJobs | None:
    """The cluster that a run was submitted to, if it can be reached from here too."""
    from schemas.errors import ClusterUnreachable

    try:
        return _connect(url)
    except ClusterUnreachable as error:
        errors().print(f"only the store is asked: {error}", style="dim", markup=False, soft_wrap=True)
        return None
