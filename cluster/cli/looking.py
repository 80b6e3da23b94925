"""The verbs that look at runs: status, logs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.amounts import count, duration, first_line, some
from cluster.cli.common import JsonOption, StoreOption, Verbs, make_table, open_existing, print_json, screen
from cluster.cli.options import DashboardOption

if TYPE_CHECKING:
    from cluster.runs import RunState, UnplannedCell
    from cluster.stores import Store

VERBS = Verbs("Runs")
COLOURS = {
    "DONE": "green", "RUNNING": "cyan", "FAILED": "red", "INTERRUPTED": "yellow", "CANCELLED": "yellow",
    "STOPPED": "red", "LOST": "red",
    "published": "green", "cached": "green", "failed": "red", "to do": "cyan",
}  # fmt: skip
SHOWN_RUNS = 10
"""Of each pipeline, the newest."""


@VERBS.verb("status", "miclip status zoo-00003 --store /data/lake")
def status(
    run: Annotated[str | None, typer.Argument(help="A run, by name; all runs if left out.", show_default=False)] = None,
    store: StoreOption = None,
    pipeline: Annotated[str | None, typer.Option("--pipeline", help="Only runs of this pipeline.")] = None,
    newest: Annotated[int, typer.Option("--newest", min=1, help="How many runs of each pipeline.")] = SHOWN_RUNS,
    as_json: JsonOption = False,
) -> None:
    """Show the newest runs of every pipeline, or the stages of one run with the first error of each."""
    from cluster.runs import by_pipeline, find_state, list_runs, load_state, resolve_run
    from cluster.watching import seconds_taken, seen_status

    where = open_existing(store)
    if run is not None:
        _status_of(load_state(where, resolve_run(where, run)), where, as_json)
        return
    runs = list_runs(where, pipeline)
    shown = [run for its in by_pipeline(runs).values() for run in its[-newest:]]
    states = [state for state in (find_state(where, name) for name in shown) if state]
    status_of = {state.run: seen_status(where, state) for state in states}
    took = {state.run: seconds_taken(where, state) for state in states}
    if as_json:
        without = {"stages", "unplanned"}
        print_json(
            [
                {**s.model_dump(mode="json", exclude=without), "status": status_of[s.run], "seconds": took[s.run]}
                for s in states
            ]
        )
        return
    if not states:
        of = f" of pipeline {pipeline}" if pipeline else ""
        screen().print(f"no runs{of} in {where.uri} yet; [bold]miclip run SPEC --store {where.uri}[/bold]")
        return
    table = make_table("run", "status", "stages", "time", "", right=("stages", "time"))
    for state in states:
        trial = "trial" if state.limited else ""
        table.add_row(
            state.run,
            f"[{COLOURS[status_of[state.run]]}]{status_of[state.run]}[/]",
            f"{count(len(state.published))}/{count(len(state.parts))}",
            duration(took[state.run]),
            "  ".join(filter(None, [trial, _progress(state), _sign(where, state), first_line(state.message)])),
        )
    screen().print(table)
    if older := len(runs) - len(shown):
        screen().print(f"[dim]and {count(older)} older: --newest N, --pipeline NAME[/dim]")


def _status_of(state: RunState, store: Store, as_json: bool) -> None:
    from rich.text import Text

    from cluster.runs import load_options
    from cluster.watching import seconds_taken, seen_status

    word = seen_status(store, state)
    state = state.model_copy(update={"seconds": seconds_taken(store, state)})
    submission = load_options(store, state.run).submission
    if as_json:
        print_json({**state.model_dump(mode="json"), "status": word, "submission": submission})
        return
    console = screen()
    show_head(state, word)
    if submission:
        console.print(Text(f"submission {submission}", "dim"), soft_wrap=True)
    if state.status == "RUNNING":
        told = [_progress(state), f"{_sign(store, state)}, if its clock and ours agree"]
        console.print(f"[dim]{'; '.join(filter(None, told))}[/dim]")
    kept = _kept(state, store)
    table = make_table("cell", "output", "state", "shards", "", right=("shards",))
    for stage in state.stages:
        table.add_row(
            Text(stage.cell),
            Text(f"{stage.output} {stage.detail}".rstrip()),
            f"[{COLOURS[stage.state]}]{stage.state}[/]",
            f"{count(stage.shards_done)}/{count(stage.shards)}",
            Text(first_line(stage.error), "red") if stage.error else Text(kept.get(stage.digest, ""), "dim"),
        )
    for cell in state.unplanned:
        table.add_row(
            Text(cell.cell),
            "",
            f"[{COLOURS[cell.state]}]{cell.state}[/]",
            "",
            Text(_unplanned(cell), "red" if cell.state == "failed" else "dim"),
        )
    console.print(table)
    if word not in ("DONE", "RUNNING"):
        where = f"{state.run} --store {store.uri}"
        more = f"more: miclip logs {where} --failed; " if any(part.state == "failed" for part in state.parts) else ""
        # a second driver beside a living one is not what a guess by two clocks should lead to
        then = f"whether it lives: miclip watch {where}" if word == "LOST" else f"go on: miclip retry {where}"
        console.print(Text(f"{more}{then}", "dim"), soft_wrap=True)


def _progress(state: RunState) -> str:
    """How much is done of a run that goes on, or whose driver is lost; nothing of one that has ended."""
    shards = sum(stage.shards for stage in state.stages)
    if state.status != "RUNNING" or not shards:
        return ""
    return f"{count(sum(stage.shards_done for stage in state.stages))} of {some(shards, 'shard')} done"


def _unplanned(cell: UnplannedCell) -> str:
    return f"cannot be planned{'' if cell.state == 'failed' else ' yet'}: {first_line(cell.error)}"


def show_head(state: RunState, word: str) -> None:
    """The name of a run, the status that is seen of it, how long it took, and why it ended."""
    from rich.text import Text

    message = f"  {first_line(state.message)}" if state.message else ""
    screen().print(
        Text.assemble((f"{state.run} ", "bold"), (word, COLOURS[word]), f"  {duration(state.seconds)}{message}"),
        soft_wrap=True,
    )


def _kept(state: RunState, store: Store) -> dict[str, str]:
    """How far shards have come that take long: what a killed run would go on from."""
    from cluster.keep import newest_step
    from cluster.stores.base import prefetch

    open_stages = [stage.digest for stage in state.stages if stage.state == "to do"]
    steps = prefetch(lambda digest: newest_step(store, digest), open_stages)
    return {digest: f"state kept at step {step:,}" for digest, step in steps if step is not None}


def _sign(store: Store, state: RunState) -> str:
    """When the driver last said that it lives, which is what RUNNING or LOST is guessed from; nothing of a run that has ended."""
    from cluster.alive import last_sign

    if state.status != "RUNNING":
        return ""
    moment = last_sign(store, state.run)
    return f"last sign of life: {'none yet' if moment is None else f'{duration(max(0.0, time.time() - moment))} ago'}"


# ---------------------------------------------------------------- logs


@VERBS.verb("logs", "miclip logs zoo-00003 --failed")
def logs(
    run: Annotated[str, typer.Argument(help="A run, by name.", show_default=False)],
    stage: Annotated[
        str | None, typer.Option("--stage", help="Only this stage: a digest (or its start) or a cell.")
    ] = None,
    shard: Annotated[int | None, typer.Option("--shard", min=0, help="Only this shard.")] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Tracebacks of the shards that failed and are still missing.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    driver: Annotated[
        bool, typer.Option("--driver", help="What the driver of a submitted run printed, from its cluster.")
    ] = False,
    store: StoreOption = None,
    address: DashboardOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what happened in a run, in order; or the tracebacks of its failures."""
    from cluster.runs import load_state, resolve_run
    from schemas.errors import UsageError

    if driver:
        _show_driver(run, store, address)
        return
    where = open_existing(store)
    run = resolve_run(where, run)
    state = load_state(where, run)
    digests = {
        s.digest for s in state.stages if stage is None or s.digest.startswith(stage) or s.cell.startswith(stage)
    }
    unplanned = [cell for cell in state.unplanned if stage is None or cell.cell.startswith(stage)]
    if stage is not None and not digests and not unplanned:
        cells = dict.fromkeys(part.cell for part in state.parts)
        raise UsageError(
            f"--stage {stage}: run {run} has no such cell or stage; it has {', '.join(cells) or 'none yet'}"
        )
    if failed:
        _show_failures(where, state, digests, unplanned if shard is None else [], shard, as_json)
        return
    for event in _events(where, run, follow):
        stages = {event["stage"]} if "stage" in event else set(event.get("stages", ()))
        if (stage is not None and not stages & digests) or (shard is not None and event.get("shard") != shard):
            continue
        if as_json:
            import json

            typer.echo(json.dumps(event, ensure_ascii=False))
        else:
            typer.echo(_line(event))


def _show_failures(
    store: Store,
    state: RunState,
    digests: set[str],
    unplanned: Sequence[UnplannedCell],
    shard: int | None,
    as_json: bool,
) -> None:
    from cluster.ledger import load_failures

    seen: dict[str, Any] = {}
    for stage in state.stages:
        for failure in load_failures(store, stage.digest) if stage.digest in digests else ():
            if shard in (None, failure.shard):
                seen.setdefault(failure.traceback, (stage, failure))
    refused = [cell for cell in unplanned if cell.state == "failed"]
    if as_json:
        shards = [{"cell": s.cell, "stage": s.digest, **f.model_dump(mode="json")} for s, f in seen.values()]
        print_json([*shards, *({"cell": cell.cell, "stage": None, "message": cell.error} for cell in refused)])
        return
    for stage, failure in seen.values():
        typer.echo(f"{stage.cell}  {stage.output} {stage.detail}  shard {failure.shard}  {failure.attempts} attempts")
        typer.echo("  " + failure.traceback.rstrip().replace("\n", "\n  ") + "\n")
    for cell in refused:
        typer.echo(f"{cell.cell}  cannot be planned\n  " + cell.error.rstrip().replace("\n", "\n  ") + "\n")
    if not seen and not refused:
        typer.echo(
            "no shard of this run has failed and is still missing" if state.status != "STOPPED" else state.message
        )


def _show_driver(run: str, store: str | None, address: str | None) -> None:
    """The words of a driver; its store is not needed where submission and cluster are named."""
    from cluster.on_ray.jobs import ClusterJobs
    from cluster.runs import load_options, resolve_run
    from schemas.errors import UsageError

    submission, url = run, address
    if re.fullmatch(r".+-[0-9a-f]{8}-a\d+", run) is None or address is None:
        where = open_existing(store)
        options = load_options(where, resolve_run(where, run))
        submission, url = options.submission, address or options.jobs
        if not submission:
            raise UsageError(
                f"run {run} was not submitted to a cluster; what its workers printed lies where it was run"
            )
    typer.echo(ClusterJobs(url).logs(submission), nl=False)


def _events(store: Store, run: str, follow: bool) -> Iterable[dict[str, Any]]:
    from cluster.events import read_events
    from cluster.watching import follow_events

    return follow_events(store, run) if follow else read_events(store, run)


_SKIP = {"time", "event", "work", "title", "stages", "seconds", "stage", "kind", "round", "final"}


def _line(event: dict[str, Any]) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    what = event.get("title") or " ".join(str(event[k]) for k in ("kind", "subject") if event.get(k))
    rest = " ".join(
        f"{k}={_short(v)}" for k, v in event.items() if k not in _SKIP and v not in ("", [], {}) and k != "subject"
    )
    spent = event.get("seconds")
    times = " ".join(f"{k} {v}s" for k, v in spent.items()) if isinstance(spent, dict) else ""
    return "  ".join(filter(None, [clock, f"{event['event']:<13}", what, rest, times]))


def _short(value: Any) -> str:
    text = str(value).strip().replace("\n", " ")
    return text if len(text) <= 160 else text[:157] + "..."
