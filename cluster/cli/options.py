"""Options that say where work runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class ExecutorName(StrEnum):
    """Where work runs: on Ray actors, or one task after another in this process."""

    ray = "ray"
    serial = "serial"


ExecutorOption = Annotated[ExecutorName, typer.Option("--executor", help="Ray actors, or one by one in this process.")]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="A running Ray cluster (auto, host:port); else Ray starts here.")
]
DashboardOption = Annotated[
    str | None,
    typer.Option("--address", help="URL of the cluster's dashboard; else $RAY_API_SERVER_ADDRESS.", show_default=False),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Workers per stage, whatever the spec says.")
]
CpusOption = Annotated[
    int | None, typer.Option("--cpus", min=1, help="CPUs that a local Ray may use; all if left out.")
]
GpusOption = Annotated[int, typer.Option("--gpus", min=0, help="GPUs that a local Ray may use.")]
SameExecutorOption = Annotated[
    ExecutorName | None, typer.Option("--executor", help="As the run had it, if left out.", show_default=False)
]
SameGpusOption = Annotated[
    int | None, typer.Option("--gpus", min=0, help="As the run had it, if left out.", show_default=False)
]
