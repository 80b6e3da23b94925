"""The verbs that work: demo, run, retry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.common import (
    JsonOption,
    LimitOption,
    SetOption,
    SpecArgument,
    StoreOption,
    Verbs,
    open_existing,
    open_store,
    print_json,
)
from cluster.cli.options import (
    AddressOption,
    CpusOption,
    ExecutorName,
    ExecutorOption,
    GpusOption,
    SameExecutorOption,
    SameGpusOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from cluster.cli.session import Session
    from cluster.lease import Pace
    from cluster.pipeline import RunReport
    from cluster.runs import RunOptions
    from cluster.spec_file import SpecFile
    from cluster.stores import Store
    from schemas.pipeline_spec import PipelineSpec

VERBS = Verbs("Work")
DEMO_FOLDER = "miclip-demo"


@VERBS.verb("demo", "miclip demo --folder miclip-demo")
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where images, spec and store go.")] = Path(DEMO_FOLDER),
    images: Annotated[int, typer.Option("--images", min=100, help="How many image files to write.")] = 2400,
    executor: ExecutorOption = ExecutorName.ray,
    as_json: JsonOption = False,
) -> None:
    """Make image files, run five small models over them, train an SAE, ask SQL questions, write a page. Needs no download."""
    from cluster.amounts import count
    from cluster.catalog import open_catalog
    from cluster.cli.answers import show_answer
    from cluster.cli.common import errors, screen
    from cluster.demo import QUESTIONS, DemoPaths, prepare
    from cluster.report.data import load_report
    from cluster.report.page import make_page
    from cluster.report.sections import SECTIONS
    from cluster.runs import RunOptions
    from cluster.spec_file import read_spec_file
    from cluster.sql import run_sql

    paths = DemoPaths(folder)
    written = prepare(paths, images)
    errors().print(
        f"{count(images)} image files in {paths.world}/images ({count(written)} new); spec {paths.spec}", style="dim"
    )
    file = read_spec_file(paths.spec)
    store = open_store(None, file.pipeline.store)
    code = execute(file, store, RunOptions(executor=executor.value), as_json, advise=False)
    if code or as_json:
        raise typer.Exit(code)
    console = screen()
    for asked in QUESTIONS:
        console.print(f"\n[bold]{asked.question}[/bold]\n")
        console.print(asked.query, style="dim", markup=False, soft_wrap=True)
        show_answer(run_sql(open_catalog(store), asked.query))
        console.print(asked.reading, style="dim")
    paths.report.write_text(make_page(load_report(store, None), SECTIONS))
    console.print(f"To look at, in a browser: [bold]{paths.report}[/bold]", soft_wrap=True)
    console.print(f'Ask your own: [bold]miclip sql --store {store.uri} "SELECT ..."[/bold]', soft_wrap=True)


@VERBS.verb("run", "miclip run zoo.yaml --limit 64 --store /tmp/lake")
def run(
    spec: SpecArgument,
    overrides: SetOption = None,
    limit: LimitOption = None,
    store: StoreOption = None,
    executor: ExecutorOption = ExecutorName.ray,
    workers: WorkersOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = 0,
    address: AddressOption = None,
    submission: Annotated[str, typer.Option("--submission", hidden=True)] = "",
    jobs_url: Annotated[str, typer.Option("--jobs-url", hidden=True)] = "",
    python: Annotated[str, typer.Option("--python", hidden=True)] = "python",
    ship: Annotated[bool, typer.Option("--ship", hidden=True)] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a spec here; the same command again goes on where it stopped, and does nothing once it is done."""
    from cluster.runs import RunOptions
    from cluster.spec_file import read_spec_file

    file = read_spec_file(spec, overrides or (), limit)
    where = open_store(store, file.pipeline.store)
    options = RunOptions(
        executor=executor.value, workers=workers, cpus=cpus, gpus=gpus, address=address,
        submission=submission, jobs=jobs_url, python=python, ship=ship,
    )  # fmt: skip
    raise typer.Exit(execute(file, where, options, as_json))


@VERBS.verb("retry", "miclip retry zoo-00003")
def retry(
    run: Annotated[str, typer.Argument(help="A run, by name.", show_default=False)],
    store: StoreOption = None,
    executor: SameExecutorOption = None,
    workers: WorkersOption = None,
    cpus: CpusOption = None,
    gpus: SameGpusOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the spec of an earlier run again, with its options and where it ran: only what failed or is left."""
    from cluster.cli.remote import hand_over
    from cluster.runs import load_options, load_spec, resolve_run
    from cluster.spec_file import parse_spec

    where = open_existing(store)
    run = resolve_run(where, run)
    file = parse_spec(load_spec(where, run), f"{run}/spec.yaml")
    before = load_options(where, run)
    asked = {"executor": executor, "workers": workers, "cpus": cpus, "gpus": gpus, "address": address}
    options = before.model_copy(update={k: v for k, v in asked.items() if v is not None})
    to_jobs = (address or "").startswith(("http://", "https://"))
    if to_jobs or (before.submission and executor is None and address is None):
        raise typer.Exit(hand_over(file, where, options, address or before.jobs, as_json=as_json))
    options = options.model_copy(
        update={"submission": "", "jobs": "", "address": address if before.submission else options.address}
    )
    raise typer.Exit(execute(file, where, options, as_json))


def execute(
    file: SpecFile,
    store: Store,
    options: RunOptions,
    as_json: bool = False,
    advise: bool = True,
) -> int:
    """Run a spec in a session of its own and say what came of it, and what to type next; returns the exit code."""
    from cluster.cli.closing import report_json, show_report

    report, session = work(file, store, options, quiet=as_json)
    if as_json:
        print_json(report_json(report, store))
    else:
        show_report(report, store, session.log_file, advise)
    return report.exit_code


def work(
    file: SpecFile,
    store: Store,
    options: RunOptions,
    quiet: bool = False,
    pace: Pace | None = None,
    begun: Callable[[str], object] = lambda run: None,
) -> tuple[RunReport, Session]:
    """Run a spec in a session of its own, which has ended when this returns; `begun` hears the name of its run at once."""
    from cluster.cli.session import Session
    from cluster.pipeline import PipelineRun
    from cluster.planned import plan_pipeline
    from cluster.runs import new_run, save_options
    from cluster.stores.probe import check_writable

    pipeline = with_workers(file.pipeline, options.workers)
    with file.placed():
        planned = plan_pipeline(pipeline, store)  # refuses what is known to be impossible before a run is begun
    check_writable(store)
    name = new_run(store, pipeline.name, file.text)
    begun(name)
    save_options(store, name, options)
    session = Session(
        store,
        ExecutorName(options.executor),
        run=name,
        address=options.address,
        cpus=options.cpus,
        gpus=options.gpus,
        quiet=quiet,
    )
    with file.placed(), session:
        session.progress.say(f"run {name}  store {store.uri}", "dim")
        report = PipelineRun(pipeline, name, store, session.executor, session.log, session.stop, planned, pace).run()
    return report, session


def with_workers(pipeline: PipelineSpec, workers: int | None) -> PipelineSpec:
    """The same pipeline with another number of workers everywhere: effort, so no digest changes."""
    from schemas.plans import Resources

    if workers is None:
        return pipeline
    update: dict[str, Any] = {"workers": workers}
    stages = {
        name: stage.model_copy(update={"resources": stage.resources.model_copy(update=update)})
        if "resources" in stage.model_fields_set
        else stage
        for name, stage in pipeline.stages.items()
    }
    resources = (pipeline.resources or Resources()).model_copy(update=update)
    return pipeline.model_copy(update={"stages": stages, "resources": resources})
