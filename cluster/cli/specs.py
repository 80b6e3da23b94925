"""The verbs before work: validate, plan, schema."""

from __future__ import annotations

import shlex
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
    _show_unplanned(unplanned, _inspecting(spec, overrides, limit, store))


def _inspecting(spec: Path, overrides: list[str] | None, limit: int | None, store: str | None) -> str:
    """The command that looks up what planning rests on, of the spec and in the store that are meant here."""
    words = ["miclip", "plan", str(spec), "--inspect"]
    words += [word for override in overrides or () for word in ("--set", override)]
    words += [] if limit is None else ["--limit", str(limit)]
    return shlex.join([*words, *(["--store", store] if store else [])])


def _show_unplanned(unplanned: dict[str, str], command: str) -> None:
    """What is not known yet, each with the cells that need it; those that only read these are counted. command: looks it up."""
    from rich.text import Text

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
        screen().print(Text(f"to look them up: {command}", "dim"), soft_wrap=True)


@VERBS.verb("plan", "miclip plan zoo.yaml --inspect --price 2.5")
def plan(
    spec: SpecArgument,
    inspect: Annotated[bool, typer.Option("--inspect", help="Inspect models and index images first.")] = False,
    verbose: Annotated[bool, typer.Option("--stages", help="One line per stage instead of per cell.")] = False,
    tflops: Annotated[
        float | None,
        typer.Option(
            "--tflops", min=0.001, help="TFLOP/s that one device reaches; counts hours by it, not by past runs."
        ),
    ] = None,
    price: Annotated[float | None, typer.Option("--price", min=0, help="Money per GPU-hour.")] = None,
    cpu_price: Annotated[float | None, typer.Option("--cpu-price", min=0, help="Money per CPU-hour.")] = None,
    overrides: SetOption = None,
    limit: LimitOption = None,
    store: StoreOption = None,
    executor: ExecutorOption = ExecutorName.serial,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a run would do: cached or to do, shards, images, FLOPs, bytes, memory, and hours and money by what past
    runs in the store took. Computes nothing but --inspect."""
    from cluster.cli.planning import make_report
    from cluster.cost import Terms
    from cluster.planned import plan_pipeline
    from cluster.spec_file import read_spec_file

    file = read_spec_file(spec, overrides or (), limit)
    where = open_store(store, file.pipeline.store)
    with file.placed():
        if inspect:
            _inspect(file.pipeline, where, executor, address)
        report = make_report(plan_pipeline(file.pipeline, where), where, Terms(price, cpu_price, tflops))
    if as_json:
        print_json(report)
    else:
        _show(report, verbose, _inspecting(spec, overrides, limit, store))


def _show(report: dict[str, Any], verbose: bool, command: str) -> None:
    from rich.text import Text

    from cluster.cli.planning import cost_notes, device_hours, lines_of

    lines, total = lines_of(report, by_stage=verbose), report["total"]
    priced = any(line["money"] for line in lines)
    right = ["shards left", "images", "FLOPs", "stored", "memory", "busy", *(["cost"] if priced else [])]
    table = make_table("stage", "state", *right, right=right, keep=("state",))
    for line in lines:
        table.add_row(
            line["name"],
            _state(line),
            f"{count(line['shards_left'])}/{count(line['shards'])}" if line["shards"] else "-",
            short(line["images"]),
            short(line["flops"], "FLOP"),
            short(line["bytes"], "B"),
            short(line["memory"], "B"),
            device_hours(line),
            *([_money(line["money"])] if priced else []),
        )
    console = screen()
    console.print(table)
    left = [some(total["shards_left"], "shard"), short(total["flops"], "FLOP"), short(total["bytes"], "B")]
    left += [device_hours(total), *([f"cost {_money(total['money'])}"] if priced else [])]
    work = f" ({', '.join(word for word in left if word != '-')})" if total["to_do"] else ""
    console.print(
        f"{some(total['stages'], 'stage')}: {count(total['cached'])} cached, {count(total['to_do'])} to do{work}"
    )
    for words in cost_notes(total, priced):
        console.print(f"[dim]{words}[/dim]", soft_wrap=True)
    for note, cells in _notes(report).items():
        console.print(f"[dim]{cells}: {note}[/dim]", soft_wrap=True)
    if report["limited"] and any(s["kind"] == "index_images" and s["state"] != "cached" for s in report["stages"]):
        console.print("[yellow]a limit cuts what models see; the image set is indexed in whole first[/yellow]")
    for cell in (missing := report["not_planned"]):
        if cell["refused"]:
            console.print(Text(f"{cell['cell']}: {cell['why']}; the others go on without it", "red"), soft_wrap=True)
    if unknown := [cell for cell in missing if not cell["never"]]:
        console.print(
            Text.assemble(
                (f"{some(len(unknown), 'cell')} not inspected or indexed yet", "yellow"),
                "; ",
                (command, "bold"),
                " does only that",
            ),
            soft_wrap=True,
        )


def _notes(report: dict[str, Any]) -> dict[str, str]:
    """What was weighed for stages that are to be done -> the cells that it is about."""
    found: dict[str, list[str]] = {}
    for stage in report["stages"]:
        if stage["note"] and stage["state"] != "cached" and stage["cell"] not in found.setdefault(stage["note"], []):
            found[stage["note"]].append(stage["cell"])
    return {n: c[0] if len(c) == 1 else f"{c[0]} and {count(len(c) - 1)} more" for n, c in found.items()}


def _money(amount: float | None) -> str:
    return "?" if amount is None else f"{amount:,.2f}" if amount else "-"


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
    from cluster.hold import Visit
    from cluster.planned import plan_pipeline
    from cluster.run import run_stages
    from schemas.errors import WorkFailed

    planned: PlannedPipeline = plan_pipeline(pipeline, store)
    with Session(store, executor, address=address) as session, Visit(store) as visit:
        visit.add((plan for plan, _ in planned.facts.with_resources(pipeline.index_resources)), session.stop.check)
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
