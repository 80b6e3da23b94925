"""The verbs before work: validate, plan, schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.amounts import count, short, some
from cluster.cli.common import (
    JsonOption,
    LimitOption,
    SetOption,
    SpecArgument,
    StoreOption,
    Verbs,
    make_table,
    open_store,
    print_json,
    screen,
)
from cluster.cli.options import AddressOption, ExecutorName, ExecutorOption

if TYPE_CHECKING:
    from cluster.planned import PlannedPipeline
    from cluster.stores import Store

VERBS = Verbs("Specs")


@VERBS.verb("validate", "miclip validate zoo.yaml --set stages.acts.batch_size=64")
def validate(
    spec: SpecArgument,
    overrides: SetOption = None,
    limit: LimitOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a spec: file, line, field, found and expected; sites too, once its models are inspected. Schedules nothing."""
    from cluster.spec_file import read_spec_file
    from cluster.stores import make_store

    file = read_spec_file(spec, overrides or (), limit)
    uri = store or file.pipeline.store
    unplanned: dict[str, str] = {}
    if uri:
        from cluster.planned import plan_pipeline, title

        with file.placed():
            planned = plan_pipeline(file.pipeline, make_store(uri))
            planned.refuse()
        unplanned = {title(cell): cell.error for cell in planned.cells if not cell.plans}
    if as_json:
        unchecked = [f"{cell}: {why}" for cell, why in unplanned.items()]
        names = list(file.pipeline.stages)
        print_json({"valid": True, "pipeline": file.pipeline.name, "stages": names, "unchecked": unchecked})
        return
    stages = ", ".join(file.pipeline.stages)
    screen().print(f"[green]valid[/green]  {file.pipeline.name}: {some(len(file.pipeline.stages), 'stage')} ({stages})")
    if not uri:
        screen().print("[dim]no store given: models, images and sites were not looked up[/dim]")
    _show_unplanned(unplanned, f"{spec} --store {store}" if store else str(spec))


def _show_unplanned(unplanned: dict[str, str], spec: str) -> None:
    """What is not known yet, each with the cells that need it; those that only read these are counted."""
    from cluster.planned import READS

    causes: dict[str, list[str]] = {}
    for cell, why in unplanned.items():
        causes.setdefault("" if why.startswith(READS) else why, []).append(cell)
    reading = causes.pop("", [])
    for why, cells in causes.items():
        screen().print(f"[dim]not checked yet  {', '.join(cells)}: {why}[/dim]", soft_wrap=True)
    if reading:
        screen().print(
            f"[dim]not checked yet  {some(len(reading), 'cell')} that read{'s' * (len(reading) == 1)} these[/dim]"
        )
    if unplanned:
        screen().print(f"[dim]to look them up: miclip plan {spec} --inspect[/dim]", soft_wrap=True)


@VERBS.verb("plan", "miclip plan zoo.yaml --inspect --tflops 60")
def plan(
    spec: SpecArgument,
    inspect: Annotated[bool, typer.Option("--inspect", help="Inspect models and index images first.")] = False,
    verbose: Annotated[bool, typer.Option("--stages", help="One line per stage instead of per cell.")] = False,
    tflops: Annotated[
        float | None, typer.Option("--tflops", min=0.001, help="TFLOP/s that one device reaches; adds device hours.")
    ] = None,
    overrides: SetOption = None,
    limit: LimitOption = None,
    store: StoreOption = None,
    executor: ExecutorOption = ExecutorName.serial,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a run would do: cached or to do, shards, images, FLOPs, bytes, memory. Computes nothing but --inspect."""
    from cluster.cli.planning import make_report
    from cluster.planned import plan_pipeline
    from cluster.spec_file import read_spec_file

    file = read_spec_file(spec, overrides or (), limit)
    where = open_store(store, file.pipeline.store)
    with file.placed():
        if inspect:
            _inspect(file.pipeline, where, executor, address)
        report = make_report(plan_pipeline(file.pipeline, where), where, tflops)
    if as_json:
        print_json(report)
    else:
        _show(report, verbose, tflops, spec)


def _show(report: dict[str, Any], verbose: bool, tflops: float | None, spec: Path) -> None:
    from rich.text import Text

    from cluster.cli.planning import lines_of

    right = ["shards left", "images", "FLOPs", "stored", "memory", *(["device hours"] if tflops else [])]
    table = make_table("stage", "state", *right, right=right, keep=("state",))
    for line in lines_of(report, by_stage=verbose):
        table.add_row(
            line["name"],
            _state(line),
            f"{count(line['shards_left'])}/{count(line['shards'])}" if line["shards"] else "-",
            short(line["images"]),
            short(line["flops"], "FLOP"),
            short(line["bytes"], "B"),
            short(line["memory"], "B"),
            *([f"{line['flops'] / tflops / 3.6e15:.2f}"] if tflops else []),
        )
    console = screen()
    console.print(table)
    total = report["total"]
    left = [some(total["shards_left"], "shard"), short(total["flops"], "FLOP"), short(total["bytes"], "B")]
    left += [f"{total['device_hours']:.2f} device hours at {tflops:g} TFLOP/s"] if tflops else []
    work = f" ({', '.join(word for word in left if word != '-')})" if total["to_do"] else ""
    console.print(
        f"{some(total['stages'], 'stage')}: {count(total['cached'])} cached, {count(total['to_do'])} to do{work}"
    )
    for note, cells in _notes(report).items():
        console.print(f"[dim]{cells}: {note}[/dim]", soft_wrap=True)
    if report["limited"] and any(s["kind"] == "index_images" and s["state"] != "cached" for s in report["stages"]):
        console.print("[yellow]a limit cuts what models see; the image set is indexed in whole first[/yellow]")
    for cell in (missing := report["not_planned"]):
        if cell["refused"]:
            console.print(Text(f"{cell['cell']}: {cell['why']}; the others go on without it", "red"), soft_wrap=True)
    if unknown := [cell for cell in missing if not cell["refused"]]:
        console.print(
            f"[yellow]{some(len(unknown), 'cell')} not inspected or indexed yet[/yellow]; "
            f"[bold]miclip plan {spec} --inspect[/bold] does only that",
            soft_wrap=True,
        )


def _notes(report: dict[str, Any]) -> dict[str, str]:
    """What was weighed for stages that are to be done -> the cells that it is about."""
    found: dict[str, list[str]] = {}
    for stage in report["stages"]:
        if stage["note"] and stage["state"] != "cached" and stage["cell"] not in found.setdefault(stage["note"], []):
            found[stage["note"]].append(stage["cell"])
    return {n: c[0] if len(c) == 1 else f"{c[0]} and {count(len(c) - 1)} more" for n, c in found.items()}


def _state(line: dict[str, Any]) -> str:
    colours = {
        "cached": "green",
        "to do": "cyan",
        "not inspected yet": "yellow",
        "cannot be planned": "red",
        "failed": "red",
    }
    word = line["state"].split(":")[0]
    return f"[{colours.get(word, 'cyan')}]{line['state']}[/]"


def _inspect(pipeline: Any, store: Store, executor: ExecutorName, address: str | None) -> None:
    from cluster.cli.session import Session
    from cluster.planned import plan_pipeline
    from cluster.run import run_stages
    from schemas.errors import WorkFailed

    planned: PlannedPipeline = plan_pipeline(pipeline, store)
    with Session(store, executor, address=address) as session:
        board = run_stages(
            planned.facts.freeze(store, pipeline.index_resources),
            store,
            session.executor,
            session.log,
            session.stop,
        )
    if board.failed:
        first = next(iter(board.failed.values()))
        raise WorkFailed(first.message or first.error)


@VERBS.verb("schema", "miclip schema > miclip.schema.json")
def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of stdout.")] = None,
) -> None:
    """Print the JSON Schema of specs; with `# yaml-language-server: $schema=FILE` an editor completes and checks them."""
    import json

    from cluster.spec_file import json_schema

    if output is None:
        print_json(json_schema())
    else:
        output.write_text(json.dumps(json_schema(), indent=2) + "\n")
