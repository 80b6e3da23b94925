"""Runs on a cluster that is elsewhere: submitting a spec, what is refused before that, and ending a run."""

from __future__ import annotations

import shlex
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.alive import Pulse
from cluster.cells import CellPlans, spread
from cluster.feasible import Asked, check_fits
from cluster.lease import Pace
from cluster.planned import title
from cluster.runs import RunOptions, ask_to_cancel, find_state, load_options, save_state, stopped, submitted_runs
from cluster.secrets import holds_a_secret
from cluster.stores.base import Store
from cluster.watching import watch_pace
from schemas.base import digest
from schemas.errors import BadSpec, Cancelled, Infeasible, Unreachable
from schemas.pipeline_spec import PipelineSpec

if TYPE_CHECKING:
    from cluster.on_ray.jobs import ClusterJobs
    from cluster.scheduler import Node
    from cluster.spec_file import SpecFile

_PACKAGES = ("schemas", "miclip_core", "jobs", "cluster")
_KILL_SECONDS = 60.0
"""How long a cluster may take to end a driver that it was told to end; it waits a while before it kills."""
_MAX_SUBMITTERS = 20
"""So many people may submit one spec at one moment."""


@dataclass(frozen=True)
class Submission:
    """A job of a cluster that runs a spec, or ran it before."""

    id: str
    url: str
    new: bool
    """False if it was running already, so that nothing was submitted."""


def submit(file: SpecFile, store: Store, options: RunOptions, jobs: ClusterJobs, grows: bool = False) -> Submission:
    """Start the driver of a spec on a cluster; if the same spec runs there already, nothing is started.

    grows: the cluster adds machines on demand, so that what does not fit today is left for the driver to check.

    Raises:
        Infeasible: a stage asks for what no machine of the cluster has.
        BadSpec: something that looks like a credential would be shown by the cluster's jobs interface.
        ClusterUnreachable: the cluster does not answer, or refuses our token.
    """
    prefix = get_prefix(file.pipeline, store.uri)
    if not grows:
        check_feasible(file.pipeline, jobs.nodes())
    for _ in range(_MAX_SUBMITTERS):
        known = jobs.list(f"{prefix}-a")
        if running := [job for job in known if not job.ended]:
            return Submission(running[0].id, jobs.url, new=False)
        used = [_attempt(job.id) for job in known] + _attempts_in(store, prefix)
        job_id = f"{prefix}-a{max(used, default=0) + 1}"
        command = make_command(store.uri, options, job_id, jobs.url)
        if _start(jobs, job_id, command, file.text, options.ship):
            return Submission(job_id, jobs.url, new=True)
    raise Unreachable(
        f"{prefix} was submitted by others {_MAX_SUBMITTERS} times while we tried; look at them and repeat"
    )


def get_prefix(pipeline: PipelineSpec, store_uri: str) -> str:
    """`<pipeline>-<8 hex digits of what is asked for and where its store is>`, to which the attempt is added."""
    return f"{pipeline.name}-{digest({'spec': pipeline.model_dump(mode='json'), 'store': store_uri})[:8]}"


def check_feasible(pipeline: PipelineSpec, nodes: tuple[Node, ...]) -> None:
    """Refuse what no machine of a cluster can hold, because Ray would wait for it for ever.

    Raises:
        Infeasible: it names the stage, what it asks for and what there is.
    """
    for name in pipeline.stages:
        for cell in spread(pipeline, name):
            try:
                check_fits(Asked(title(CellPlans(cell)), cell.resources), nodes)
            except Infeasible as error:
                raise Infeasible(f"stages.{name}.resources: {error}; a cluster that adds machines: --grows") from None


def make_command(store_uri: str, options: RunOptions, job_id: str, url: str) -> str:
    """The shell command of a driver, to be run in a folder with `spec.yaml`.

    Raises:
        BadSpec: something in it looks like a credential; it is not repeated.
    """
    words = [options.python, "-m", "cluster.cli", "run", "spec.yaml", "--store", store_uri, "--address", "auto"]
    words += ["--submission", job_id, "--jobs-url", url]
    words += ["--workers", str(options.workers)] if options.workers else []
    words += ["--python", options.python] if options.python != "python" else []
    words += ["--ship"] * options.ship
    command = shlex.join(words)
    if holds_a_secret(command):
        raise BadSpec(
            "the store or the address has something in it that looks like a credential, which the cluster would show to "
            "everybody who may list its jobs; take it out and give it to the nodes, by environment or role"
        )
    return f"exec {command}"


def _start(jobs: ClusterJobs, job_id: str, command: str, spec: str, ship: bool) -> bool:
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory(prefix="miclip-submit-") as folder:
        Path(folder, "spec.yaml").write_text(spec, encoding="utf-8")
        return jobs.submit(job_id, command, Path(folder), [root / name for name in _PACKAGES] if ship else ())


def _attempts_in(store: Store, prefix: str) -> list[int]:
    """Attempts that earlier clusters ran: a cluster forgets its jobs when it ends, the store does not."""
    with suppress(Unreachable):  # the cluster may reach a store that this machine does not
        return [_attempt(options.submission) for _, options in submitted_runs(store, prefix)]
    return []


def _attempt(job_id: str) -> int:
    number = job_id.rpartition("-a")[2]
    return int(number) if number.isdecimal() else 0


# ---------------------------------------------------------------- cancel


def cancel(store: Store, run: str, seconds: float, jobs: ClusterJobs | None = None, pace: Pace | None = None) -> str:
    """Ask the driver of a run to end, and wait for it; returns the status that is seen then.

    seconds: how long a driver that lives may take. jobs: the cluster that it was submitted to, which ends it if it does not
    answer in time, or at once if it was asked before. A driver that no cluster knows, and that shows no new sign of life for
    the patience of `pace` (`watch_pace()` if left out), is lost: its run is cancelled for it. Returns RUNNING if it lives
    and goes on.
    """
    pace = pace or watch_pace()
    state = find_state(store, run)
    if state is not None and state.status != "RUNNING":
        return state.status
    asked_before = not ask_to_cancel(store, run)
    driver = _Driver(jobs, load_options(store, run).submission)
    pulse, begun = Pulse(store, run, pace.clock), pace.clock()
    stopped_at = begun if asked_before and driver.stop() else None
    while True:
        silence, waited = pulse.look(), pace.clock() - begun
        if _has_ended(store, run) or driver.has_ended():
            return _settle(store, run)
        if stopped_at is not None:
            if pace.clock() - stopped_at >= _KILL_SECONDS:
                return "RUNNING"
        elif waited >= seconds and driver.stop():
            stopped_at = pace.clock()
        elif waited >= seconds and pulse.beats:
            return "RUNNING"
        elif silence >= pace.patience:
            return _settle(store, run)
        pace.sleep(pace.beat)


class _Driver:
    """The driver of a run as the cluster sees it that it was submitted to; where there is none, nothing is known of it."""

    def __init__(self, jobs: ClusterJobs | None, submission: str) -> None:
        self._jobs, self._submission = jobs if submission else None, submission

    def has_ended(self) -> bool:
        """Whether the cluster says so."""
        job = self._jobs.get(self._submission) if self._jobs else None
        return job is not None and job.ended

    def stop(self) -> bool:
        """Have it ended; False if its cluster does not know it, or there is none."""
        if self._jobs is None or self._jobs.get(self._submission) is None:
            return False
        self._jobs.stop(self._submission)
        return True


def _has_ended(store: Store, run: str) -> bool:
    state = find_state(store, run)
    return state is not None and state.status != "RUNNING"


def _settle(store: Store, run: str) -> str:
    """Write for a driver that could not, or that only heard a signal, that its run was cancelled."""
    state = find_state(store, run)
    if state is None or state.status not in ("RUNNING", "INTERRUPTED"):
        return state.status if state else "CANCELLED"
    error = Cancelled("cancelled; finished shards are kept, miclip retry goes on from here")
    save_state(store, stopped(state, error))
    return "CANCELLED"
