"""A model hub on loopback that answers the requests of the real client: commits, branches, private repositories, a log."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Repository:
    """Commits by name, what branches mean, and the token that opens it (None: anybody may read).

    moves: after the next request for a branch, it means this commit. delay: seconds before a body is sent.
    refuses: status of every answer to a method. cuts: bodies end half way.
    """

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    token: str | None = None
    moves: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    refuses: dict[str, int] = field(default_factory=dict)
    cuts: bool = False


@dataclass
class Hub:
    """Repositories by name, the address, and every request as (method, repository, revision, file)."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    log: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, name: str, folder: Path, token: str | None = None, **more: Any) -> Repository:
        """Publish a folder as the first commit of branch main."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        commit = hashlib.sha1(name.encode()).hexdigest()
        self.repositories[name] = Repository({commit: files}, {"main": commit}, token, **more)
        return self.repositories[name]

    def fetched(self, name: str, file: str) -> int:
        """How often the bytes of a file were sent."""
        return sum(entry[0] == "GET" and entry[1] == name and entry[3] == file for entry in self.log)


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            _answer(hub, self, False)

        def do_GET(self) -> None:
            _answer(hub, self, True)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _answer(hub: Hub, request: BaseHTTPRequestHandler, with_body: bool) -> None:
    """`/ORG/NAME/resolve/REVISION/FILE`, the only address that fetching single files needs."""
    parts = request.path.split("?")[0].strip("/").split("/")
    if len(parts) != 5 or parts[2] != "resolve":
        return _refuse(request, 404, "RepoNotFound")
    name, revision, file = "/".join(parts[:2]), parts[3], parts[4]
    hub.log.append((request.command, name, revision, file))
    repository = hub.repositories.get(name)
    given = request.headers.get("Authorization")
    if repository is None or repository.token not in (None, (given or "").removeprefix("Bearer ")):
        # The real hub does not tell strangers whether a private repository exists.
        return _refuse(request, 401, "RepoNotFound") if given is None else _refuse(request, 401, None)
    if request.command in repository.refuses:
        return _refuse(request, repository.refuses[request.command], "NotToday")
    commit = repository.branches.get(revision, revision)
    if revision in repository.moves:
        repository.branches[revision] = repository.moves.pop(revision)
    if commit not in repository.commits:
        return _refuse(request, 404, "RevisionNotFound")
    if file not in repository.commits[commit]:
        return _refuse(request, 404, "EntryNotFound", commit)
    body = repository.commits[commit][file]
    request.send_response(200)
    request.send_header("Content-Length", str(len(body)))
    request.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
    request.send_header("X-Repo-Commit", commit)
    request.end_headers()
    if with_body:
        time.sleep(repository.delay)
        request.wfile.write(body[: len(body) // 2] if repository.cuts else body)
        request.close_connection = repository.cuts


def _refuse(request: BaseHTTPRequestHandler, status: int, code: str | None, commit: str | None = None) -> None:
    request.send_response(status)
    if code is None:
        request.send_header("X-Error-Message", "Invalid credentials in Authorization header")
    else:
        request.send_header("X-Error-Code", code)
    request.send_header("Content-Length", "0")
    if commit is not None:
        request.send_header("X-Repo-Commit", commit)
    request.end_headers()
