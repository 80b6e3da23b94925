"""The pod that waits for a night: against a server that answers as the API server of Kubernetes does."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra import launch as launch_module
from infra.launch import Api, Ended, run, run_night, tonight

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

    def start(*answers: dict[str, str] | int, patience_s: float = 60.0, new_clusters: int = -1) -> tuple[str, Cluster]:
        """One RayJob, or as many as a night may have."""
        clusters.append(cluster := Cluster(*answers))
        threading.Thread(target=cluster.serve_forever, args=(0.01,), daemon=True).start()
        api = Api(cluster.url, account)
        if new_clusters >= 0:
            return run_night(api, TEMPLATE, "miclip-nightly-1", "uid-1", new_clusters, pause_s=0.0), cluster
        job = tonight(TEMPLATE, "miclip-nightly-1", "uid-1")
        return run(api, job, pause_s=0.0, patience_s=patience_s).failure, cluster

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


def failed(code: int | None, reason: str = "AppFailed") -> dict[str, str]:
    """What the operator tells of a driver that ended so, or of one that it lost."""
    told = f"Job entrypoint command failed with exit code {code}, last available logs:\nfailed with exit code 7"
    return {
        "jobDeploymentStatus": "Failed",
        "jobStatus": "FAILED" if code is not None else "RUNNING",
        "reason": reason,
        "message": told if code is not None else "the head is gone",
    }


CODES = {0: 1, 1: 1, 2: 1, 130: 1, 3: 3, -9: 3, -15: 3, None: 3}
"""Exit code of the driver -> clusters that a night costs that may have two more; None: nobody knows."""


@pytest.mark.parametrize(("code", "clusters"), CODES.items())
def test_only_what_another_cluster_may_mend_costs_one(launch: Any, code: int | None, clusters: int) -> None:
    failure, cluster = launch(RUNNING, DONE if code == 0 else failed(code), new_clusters=2)
    assert len(cluster.jobs) == clusters and bool(failure) == (code != 0)
    assert list(cluster.jobs) == ["miclip-nightly-1", "miclip-nightly-1-2", "miclip-nightly-1-3"][:clusters]


def test_ray_tells_exit_codes_in_these_words() -> None:
    source = Path(importlib.util.find_spec("ray").submodule_search_locations[0])  # type: ignore[union-attr,index]
    supervisor = (source / "dashboard" / "modules" / "job" / "job_supervisor.py").read_text()
    assert launch_module._EXIT_CODE.pattern == r"failed with exit code (-?\d+)"
    assert 'f"failed with exit code {return_code}' in supervisor


@pytest.mark.parametrize(
    "status",
    [
        failed(None, "DeadlineExceeded"),
        {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"},
        {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "no such field"},
        403,
    ],
)
def test_what_took_too_long_was_stopped_or_refused_is_not_tried_again(launch: Any, status: Any) -> None:
    failure, cluster = launch(status, new_clusters=2)
    assert failure and len(cluster.jobs) == 1


def test_a_night_that_a_new_cluster_mends_succeeded(launch: Any) -> None:
    failure, cluster = launch(RUNNING, failed(None), RUNNING, DONE, new_clusters=1)
    assert failure == "" and len(cluster.jobs) == 2


def test_a_pod_that_is_started_again_waits_for_the_rayjob_that_is_there(account: Path, launch: Any) -> None:
    _, cluster = launch(DONE)
    there = dict(cluster.jobs)
    job = tonight(TEMPLATE, "miclip-nightly-1", "uid-2")
    assert run(Api(cluster.url, account), job, pause_s=0.0) == Ended("")
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
