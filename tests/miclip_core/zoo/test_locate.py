"""Web checkpoints arrive whole and as announced, or not at all; what may pass is told from what stays wrong."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from miclip_core.zoo.locate import HubFile, WebFile, locate
from schemas.errors import ModelUnreachable, UnknownModel

BODY = b"weights " * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """`/a/model.pt` and `/b/model.pt` differ; `/cut` stops half way; `/503` and others answer with that status."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.strip("/").isdigit():
            return self.send_error(int(self.path.strip("/")))
        body = BODY + self.path.encode() if self.path.startswith("/b") else BODY
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:100] if self.path == "/cut" else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a server; torch's cache is an empty folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    Handler.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_web_file_is_fetched_once_and_verified(web: str) -> None:
    request = WebFile(f"{web}/a/model.pt", SHA256[:12])
    path = locate(request)
    assert path.read_bytes() == BODY and path.name == "model.pt"
    assert locate(request) == path and Handler.asked == ["/a/model.pt"]
    assert list(path.parent.iterdir()) == [path]


def test_two_addresses_with_one_file_name_do_not_share_a_file(web: str) -> None:
    first, second = locate(WebFile(f"{web}/a/model.pt")), locate(WebFile(f"{web}/b/model.pt"))
    assert first.read_bytes() == BODY and second.read_bytes() == BODY + b"/b/model.pt"


@pytest.mark.parametrize(
    ("path", "sha256", "message"),
    [
        ("/a/model.pt", "00" + SHA256[2:], rf"have sha256 {SHA256[:16]}\.\.\., expected 00"),
        ("/cut", "", "100 of 8000 bytes came"),
        ("/429", "", "refuses this file with status 429; it is overloaded"),
        ("/503", "", "refuses this file with status 503; it is overloaded"),
    ],
)
def test_what_may_pass_leaves_nothing_behind(web: str, tmp_path: Path, path: str, sha256: str, message: str) -> None:
    with pytest.raises(ModelUnreachable, match=message):
        locate(WebFile(web + path, sha256))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_what_the_server_does_not_have_stays_unknown(web: str, status: int) -> None:
    with pytest.raises(UnknownModel, match=f"with status {status}"):
        locate(WebFile(f"{web}/{status}"))


def test_a_server_that_is_away_may_come_back(web: str) -> None:
    with pytest.raises(ModelUnreachable, match=r"could not be fetched: URLError: .*refused"):
        locate(WebFile("http://127.0.0.1:9/model.pt"))


def test_a_name_that_no_repository_can_have_is_unknown() -> None:
    with pytest.raises(UnknownModel, match="not the name of a repository"):
        locate(HubFile("org/na me", "config.json"))
