"""A Ray cluster of several nodes on this machine that is open to holders of its token only, and the commands a person gives it.

It lives in a process of its own, `python -m tests.on_cluster PORT`: Ray reads once, when it is loaded, whether tokens count.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from cluster.events import read_events
from cluster.runs import resolve_run
from cluster.stores.base import make_store
from schemas.errors import UnknownRun
from tests.servers import free_port

ROOT = Path(__file__).parent.parent
TOKEN = "4f" * 32
PATIENCE = 300.0
"""Seconds after which a test gives up waiting, on a machine under load."""


@dataclass
class Place:
    """A cluster, and where its jobs interface answers."""

    process: subprocess.Popen[str]
    url: str
    session: Path
    """Where Ray keeps logs, sockets and what was sent along."""

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """`miclip ...` as a process of its own."""
        command = [sys.executable, "-m", "cluster.cli", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **env}, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def miclip(self, *words: str, code: int = 0, **env: str) -> str:
        """What `miclip ...` prints on stdout; it must end with this code."""
        process = self.start(*words, **env)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, f"{words}: {process.returncode}\n{out}\n{err}"
        return out if code == 0 else out + err

    def submit(self, spec: Path, *words: str, **env: str) -> dict[str, Any]:
        """Submit a spec; what is said of it."""
        order = ("submit", str(spec), "--address", self.url, "--python", sys.executable, "--json", *words)
        return json.loads(self.miclip(*order, **env))

    def run_of(self, store: str, submission: str) -> str:
        """The run of a submission, when its driver has begun it."""
        found: list[str] = []

        def begun() -> bool:
            try:
                found.append(resolve_run(make_store(store), submission))
            except UnknownRun:
                return False
            return True

        wait_until(begun, lambda: self.miclip("logs", submission, "--driver", "--address", self.url))
        return found[0]

    def status_of(self, submission: str) -> str:
        """What the cluster says of a job."""
        return next(job["status"] for job in json.loads(self.jobs_as_text()) if job["submission_id"] == submission)

    def jobs_as_text(self) -> str:
        """All that the jobs interface tells to a holder of the token."""
        answer = requests.get(f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
        answer.raise_for_status()
        return answer.text

    @staticmethod
    def events(store: Path, run: str) -> list[dict[str, Any]]:
        """What happened in a run, as far as it is written."""
        return read_events(make_store(str(store)), run)

    def driver(self, submission: str) -> psutil.Process:
        """The process of the driver of a submission."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if submission in words and "cluster.cli" in words and "run" in words:
                return process
        raise AssertionError(f"no driver of {submission} lives")

    def lose_a_machine(self) -> None:
        """Kill one of the two nodes, and give the cluster another in its place."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("lose\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "lost\n"


@contextmanager
def start_cluster(folder: Path, **on_nodes: str) -> Iterator[Place]:
    """A head without CPUs and two nodes of one CPU each; a dead node is noticed within seconds.

    folder: for the token and for logs. on_nodes: environment that the nodes alone have. The environment of this process leads
    to the cluster while it is there.
    """
    token, port = folder / "token", free_port()
    session = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # paths of sockets must be short
    token.write_text(TOKEN)
    token.chmod(0o600)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "3",
            "RAY_health_check_initial_delay_ms": "500",
            "XDG_STATE_HOME": str(folder / "state"),
        }.items():
            environment.setenv(name, value)
        environment.delenv("RAY_ADDRESS", raising=False)
        command = [sys.executable, "-m", "tests.on_cluster", str(port)]
        with open(folder / "cluster.log", "w") as log:
            pipe = subprocess.PIPE
            env = {**os.environ, "RAY_TMPDIR": str(session), **on_nodes}
            process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, stderr=log, text=True)
        assert process.stdin and process.stdout
        try:
            assert process.stdout.readline() == "ready\n", (folder / "cluster.log").read_text()
            yield Place(process, f"http://127.0.0.1:{port}", session)
        finally:
            process.stdin.close()  # which ends it
            process.wait(120)
            shutil.rmtree(session, ignore_errors=True)


def main(port: int) -> None:
    """Hold a cluster until stdin ends; a line `lose` replaces a node by another."""
    from ray.cluster_utils import Cluster

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Ray prints
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args={**head, **_node()})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, **_node())
        answers.write("ready\n")
        for _ in sys.stdin:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            cluster.add_node(num_cpus=1, **_node())
            answers.write("lost\n")
    finally:
        cluster.shutdown()


def _node() -> dict[str, Any]:
    """What every node has: little memory, and a port of its own for what starts jobs, which Ray gives to one node only."""
    return {"object_store_memory": 80 << 20, "dashboard_agent_listen_port": free_port()}


def wait_until(what: Callable[[], bool], explain: Callable[[], object] = lambda: "") -> None:
    """Wait for something that must come about."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, explain()
        time.sleep(0.1)


def kill(process: psutil.Process) -> None:
    """SIGKILL a driver, and wait until it is gone."""
    process.send_signal(signal.SIGKILL)
    process.wait(60)


if __name__ == "__main__":
    main(int(sys.argv[1]))
