"""The verb for monitoring systems: metrics."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.common import JsonOption, StoreOption, Verbs, errors, open_existing, print_json
from schemas.errors import StoreUnreachable, UsageError

if TYPE_CHECKING:
    from cluster.metrics import StoreMetrics

VERBS = Verbs("Runs")


@VERBS.verb("metrics", "miclip metrics --store /data/lake --to /var/lib/node_exporter/miclip.prom")
def metrics(
    store: StoreOption = None,
    to: Annotated[Path | None, typer.Option("--to", help="Write this file, whole or not at all.")] = None,
    serve: Annotated[
        int | None, typer.Option("--serve", min=0, max=65535, help="Answer /metrics on this port.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Where --serve listens.")] = "127.0.0.1",
    as_json: JsonOption = False,
) -> None:
    """Print figures of each pipeline's newest run for Prometheus, keep them in a file, or serve them."""
    from cluster.metrics import UP, Sample, StoreMetrics, to_text

    figures = StoreMetrics(open_existing(store))
    if serve is not None:
        _serve(figures, host, serve)
        return
    samples = figures.read()
    if to is not None:
        _replace(to, to_text(samples))
        errors().print(f"{len(samples)} figures in {to}", style="dim")
    elif as_json:
        print_json(
            [{"metric": s.metric.exposed, **dict(zip(s.metric.labels, s.labels)), "value": s.value} for s in samples]
        )
    else:
        sys.stdout.write(to_text(samples))
    if Sample(UP, (), 0) in samples:
        raise StoreUnreachable(f"{figures.store.uri} cannot be read; figures of its runs are left out")


def _serve(figures: StoreMetrics, host: str, port: int) -> None:
    from cluster.metrics_server import MetricsServer

    try:
        server = MetricsServer(figures, host, port)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host}:{port} ({error.strerror}); choose another --serve or --host"
        ) from None
    with server:
        errors().print(f"metrics at http://{host}:{server.server_port}/metrics; Ctrl-C ends", style="dim")
        server.serve_forever()


def _replace(path: Path, text: str) -> None:
    """A collector of text files may read at any moment, so it finds the old file or the new one."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    draft.write_text(text)
    draft.chmod(0o644)
    draft.replace(path)
