"""The pod that waits for a night: against a server that answers as the API server of Kubernetes does."""

from __future__ import annotations

import ast
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra import launch as launch_module
from infra.launch import Api, run, tonight

TEMPLATE = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "x", "labels": {"app": "miclip"}},
    "spec": {},
}
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


class Cluster(ThreadingHTTPServer):
    """Keeps RayJobs; each look at one gives its next status, and a number is an error of that code."""

    def __init__(self, *answers: dict[str, str] | int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = list(answers)
        self.jobs: dict[str, Any] = {}
        self.tokens: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Cluster

    def do_POST(self) -> None:
        assert self.path == "/apis/ray.io/v1/namespaces/night/rayjobs"
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.server.jobs.setdefault(job["metadata"]["name"], job) is not job
        self.answer(409 if known else 201, job)

    def do_GET(self) -> None:
        self.server.tokens.append(self.headers["Authorization"])
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if isinstance(answer, int):
            return self.answer(answer, {"message": "no"})
        name = self.path.removeprefix("/apis/ray.io/v1/namespaces/night/rayjobs/")
        return self.answer(200, {**self.server.jobs[name], "status": answer})

    def answer(self, code: int, body: Any) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "namespace").write_text("night\n")
    (tmp_path / "token").write_text("first\n")
    return tmp_path


@pytest.fixture
def launch(account: Path) -> Iterator[Any]:
    clusters: list[Cluster] = []

    def start(*answers: dict[str, str] | int, patience_s: float = 60.0) -> tuple[str, Cluster]:
        clusters.append(cluster := Cluster(*answers))
        threading.Thread(target=cluster.serve_forever, args=(0.01,), daemon=True).start()
        job = tonight(TEMPLATE, "miclip-nightly-1", "uid-1")
        return run(Api(cluster.url, account), job, pause_s=0.0, patience_s=patience_s), cluster

    yield start
    for cluster in clusters:
        cluster.shutdown()
        cluster.server_close()


def test_the_script_needs_nothing_but_python() -> None:
    tree = ast.parse(Path(launch_module.__file__).read_text())
    imports = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imports |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imports} <= set(sys.stdlib_module_names)


def test_a_night_that_succeeds_ends_well_and_belongs_to_the_job_that_began_it(launch: Any) -> None:
    failure, cluster = launch({}, {"jobDeploymentStatus": "Initializing"}, RUNNING, DONE)
    assert failure == ""
    (job,) = cluster.jobs.values()
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "miclip-nightly-1", "uid": "uid-1"}
    assert job["metadata"] == {"name": "miclip-nightly-1", "labels": {"app": "miclip"}, "ownerReferences": [owner]}
    assert TEMPLATE["metadata"]["name"] == "x", "the template is not changed"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}, "FAILED AppFailed"),
        ({"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded", "message": "no GPU"}, "no GPU"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "STOPPED"),
    ],
)
def test_a_night_that_fails_or_is_stopped_ends_badly_and_says_why(
    launch: Any, status: dict[str, str], said: str
) -> None:
    failure, _ = launch(RUNNING, status)
    assert failure.startswith("the night failed:") and said in failure


def test_a_retry_on_another_cluster_is_waited_for(launch: Any) -> None:
    assert launch(RUNNING, {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, RUNNING, DONE)[0] == ""


def test_a_pod_that_is_started_again_waits_for_the_rayjob_that_is_there(account: Path, launch: Any) -> None:
    _, cluster = launch(DONE)
    there = dict(cluster.jobs)
    job = tonight(TEMPLATE, "miclip-nightly-1", "uid-2")
    assert run(Api(cluster.url, account), job, pause_s=0.0) == ""
    assert cluster.jobs == there


def test_an_api_server_that_is_away_for_a_moment_is_waited_for(launch: Any) -> None:
    assert launch(503, RUNNING, 429, 500, DONE)[0] == ""


def test_an_api_server_that_stays_away_ends_the_wait(launch: Any) -> None:
    assert "has not answered for 0 s" in launch(503, patience_s=0.0)[0]


def test_a_refusal_is_final(launch: Any) -> None:
    failure, cluster = launch(403)
    assert failure.startswith("the API server says 403") and len(cluster.tokens) == 1


def test_a_rayjob_that_somebody_deleted_ends_the_wait(launch: Any) -> None:
    assert launch(RUNNING, 404)[0].startswith("the API server says 404")


def test_a_token_that_is_replaced_is_read_again(account: Path, launch: Any) -> None:
    _, cluster = launch(DONE)
    (account / "token").write_text("second\n")
    Api(cluster.url, account).get("miclip-nightly-1")
    assert cluster.tokens == ["Bearer first", "Bearer second"]
