"""The jobs of a running Ray cluster, through the HTTP interface of its dashboard: whoever holds its token may use it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from cluster.on_ray.session import first_line, knock, refused
from cluster.on_ray.watch import get_node
from cluster.scheduler import Node
from schemas.errors import ClusterUnreachable, UsageError

_URL = "RAY_API_SERVER_ADDRESS"
_NOT_READY = "No available agent"
_STARTING_SECONDS = 30.0
"""A head answers some seconds before it can start jobs."""
_MAX_NODES = 10_000
"""The interface gives no more at once."""


class Job(NamedTuple):
    """A submitted job as its cluster sees it."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str

    @property
    def ended(self) -> bool:
        """Whether its driver will do nothing more."""
        return JobStatus(self.status).is_terminal()


class ClusterJobs:
    """Submits, lists, reads and stops jobs. Nothing secret goes through here: the interface shows what it is given."""

    def __init__(self, url: str | None = None) -> None:
        """url: of the dashboard, `http://host:8265`; else RAY_API_SERVER_ADDRESS says it.

        Raises:
            UsageError: it is no URL, or none is given.
            ClusterUnreachable: nothing answers there, or it refuses our token.
        """
        logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of every upload
        self.url = _check_url(url or os.environ.get(_URL))
        with self._errors(), _only(self.url):
            parts = urlsplit(self.url)
            knock(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
            self._client = JobSubmissionClient(self.url)

    def list(self, prefix: str) -> list[Job]:
        """The jobs whose id begins so, as far as this cluster remembers."""
        with self._errors():
            found = self._client.list_jobs()
        return [_job(job) for job in found if (job.submission_id or "").startswith(prefix)]

    def get(self, job_id: str) -> Job | None:
        """A job, or None if this cluster knows none of that id."""
        return next((job for job in self.list(job_id) if job.id == job_id), None)

    def submit(self, job_id: str, command: str, folder: Path, modules: Sequence[Path] = ()) -> bool:
        """Start a command of the shell on the cluster, in a copy of `folder`; False if a job of that id is there already.

        modules: folders of Python packages that the driver and its workers import instead of what nodes have installed.
        """
        environment: dict[str, Any] = {"working_dir": str(folder)}
        if modules:
            environment["py_modules"] = [str(path) for path in modules]
        with self._errors():
            end = time.monotonic() + _STARTING_SECONDS
            while True:
                try:
                    self._client.submit_job(submission_id=job_id, entrypoint=command, runtime_env=environment)
                    return True
                except RuntimeError as error:
                    if self.get(job_id) is not None:
                        return False
                    if _NOT_READY not in str(error) or time.monotonic() > end:
                        raise RuntimeError(_last_line(error)) from error
                time.sleep(1.0)

    def logs(self, job_id: str) -> str:
        """What its driver has printed so far."""
        with self._errors():
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> None:
        """SIGTERM to its driver, and SIGKILL if it has not ended after as long as the cluster gives it."""
        with self._errors():
            self._client.stop_job(job_id)

    def nodes(self) -> tuple[Node, ...]:
        """The machines that the cluster has now."""
        with self._errors(), _only(self.url):
            alive: list[tuple[str, str, str | bool | int | float]] = [("state", "=", "ALIVE")]
            # "missing output" are the machines that have died, too, and those are filtered out
            found = list_nodes(self.url, alive, limit=_MAX_NODES, detail=True, raise_on_missing_output=False)
        return tuple(get_node(node.resources_total) for node in found)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise refused(self.url, error) from error
        except (OSError, RuntimeError, ValueError, RayStateApiException) as error:  # requests' errors are OSErrors
            raise ClusterUnreachable(
                f"the jobs interface at {self.url} does not answer: {first_line(error)}"
            ) from error


def _job(details: Any) -> Job:
    return Job(str(details.submission_id), details.status.value, str(details.message or ""))


def _check_url(url: str | None) -> str:
    if not url:
        raise UsageError(f"no cluster: give --address http://host:8265, the URL of its dashboard, or set {_URL}")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--address {url}: expected the URL of the cluster's dashboard, for example http://host:8265")
    if parts.username or parts.password:
        raise UsageError(
            "--address: found a name or password in the URL, which would be kept with the run; the cluster's token "
            "belongs into ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH"
        )
    return url.rstrip("/")


@contextmanager
def _only(url: str) -> Iterator[None]:
    """Ray lets its environment win over an address that is given; this one was asked for."""
    before = os.environ.get(_URL)
    os.environ[_URL] = url
    try:
        yield
    finally:
        if before is None:
            del os.environ[_URL]
        else:
            os.environ[_URL] = before


def _last_line(error: BaseException) -> str:
    """The head answers with a traceback, which ends with what is wrong."""
    return ([line for line in str(error).splitlines() if line.strip(" .")] or [type(error).__name__])[-1]
