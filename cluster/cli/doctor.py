"""The verb that looks at this machine: versions, torch, the store, Ray."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, NamedTuple

import typer

from cluster.cli.common import JsonOption, StoreOption, Verbs, make_table, print_json, screen

VERBS = Verbs("This machine")
PACKAGES = (
    "miclip",
    "ray",
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "timm",
    "pyarrow",
    "duckdb",
    "s3fs",
    "pydantic",
)
SELFTEST = "kind: selftest\nname: doctor\nrows: 400\nshard_rows: 50\n"


class Finding(NamedTuple):
    """One thing that was looked at; `ok` None means that it is only told."""

    what: str
    ok: bool | None
    detail: str


@VERBS.verb("doctor", "miclip doctor --store s3://lab/lake --cluster")
def doctor(
    store: StoreOption = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Start Ray (or join --address) and run the selftest.")
    ] = False,
    address: Annotated[str | None, typer.Option("--address", help="A running Ray cluster.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: versions, torch, the store by really writing to it, Ray by really running on it."""
    findings = [*_versions(), *_torch(), *_token()]
    uri = store or os.environ.get("MICLIP_STORE")
    if uri:
        findings += _store(uri)
    if cluster or address:
        findings.append(_cluster(address))
    bad = [f for f in findings if f.ok is False]
    if as_json:
        print_json({"ok": not bad, "findings": [f._asdict() for f in findings]})
    else:
        table = make_table("", "", "")
        for finding in findings:
            mark = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: "[dim]·[/dim]"}[finding.ok]
            table.add_row(mark, finding.what, finding.detail)
        table.show_header = False
        screen().print(table)
        screen().print(f"[red]{len(bad)} problems[/red]" if bad else "[green]all well[/green]")
        if not uri:
            screen().print("[dim]--store checks a store; --cluster runs the selftest on Ray[/dim]")
    raise typer.Exit(1 if bad else 0)


def _versions() -> Iterator[Finding]:
    yield Finding("python", sys.version_info >= (3, 11), sys.version.split()[0])
    for name in PACKAGES:
        try:
            yield Finding(name, None, version(name))
        except PackageNotFoundError:
            yield Finding(name, None if name == "miclip" else False, "not installed")


def _torch() -> list[Finding]:
    from jobs.machine import look_at_torch

    return [Finding(*finding) for finding in look_at_torch()]


def _token() -> list[Finding]:
    """Whoever can read the token can run code in the cluster."""
    from cluster.on_ray.session import token_path

    path = token_path()
    if path is None:
        return [Finding("ray token", None, "in RAY_AUTH_TOKEN")]
    if not path.exists():
        return [Finding("ray token", None, f"{path} is not there yet; a local run makes it")]
    mode = path.stat().st_mode & 0o777
    open_to_others = bool(mode & 0o077)
    advice = f", expected 600: chmod 600 {path}" if open_to_others else ""
    return [Finding("ray token", not open_to_others, f"{path} has mode {mode:o}{advice}")]


def _store(uri: str) -> list[Finding]:
    from cluster.stores import make_store
    from cluster.stores.probe import probe

    return [Finding(f"store: {check.check}", check.ok, check.detail) for check in probe(make_store(uri))]


def _cluster(address: str | None) -> Finding:
    """Run the selftest on Ray actors in a store that only this machine sees, so with --address it must be this machine."""
    from cluster.cli.options import ExecutorName
    from cluster.cli.session import Session
    from cluster.pipeline import PipelineRun
    from cluster.runs import new_run
    from cluster.spec_file import parse_spec
    from cluster.stores import make_store
    from schemas.errors import MiclipError

    with tempfile.TemporaryDirectory(prefix="miclip-doctor-") as folder:
        store = make_store(folder)
        file = parse_spec(SELFTEST, "selftest")
        run = new_run(store, file.pipeline.name, file.text)
        try:
            with Session(store, ExecutorName.ray, run=run, address=address, quiet=True) as session:
                report = PipelineRun(file.pipeline, run, store, session.executor, session.log, session.stop).run()
        except MiclipError as error:
            return Finding("ray", False, str(error))
    rows = f"selftest on Ray actors: {report.state.status}, {report.state.seconds:.1f} s"
    return Finding("ray", report.exit_code == 0, "; ".join([rows, *report.failures[:1]]))
