"""The small server: whole files, ranges, and nothing outside its folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse

import pytest

from cluster.explore.server import FolderServer

DATA = bytes(range(200))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FolderServer]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "secret").write_text("outside")
    (folder / "site" / "data").mkdir(parents=True)
    (folder / "site" / "circle").symlink_to("circle")
    (folder / "site" / "index.html").write_text("<p>hello")
    (folder / "site" / "data" / "part.parquet").write_bytes(DATA)
    with FolderServer(folder / "site") as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: FolderServer, path: str, asked: str | None = None, method: str = "GET", host: str | None = None
) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    headers = {"Range": asked, "Host": host}
    connection.request(method, path, headers={name: text for name, text in headers.items() if text is not None})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_a_folder_has_its_page(server: FolderServer) -> None:
    for path in ("/", "/index.html", "/?a=b"):
        answer, body = ask(server, path)
        assert (answer.status, body) == (200, b"<p>hello")
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=190-199", 190, 200),
        ("bytes=190-999", 190, 200),
        ("bytes=150-", 150, 200),
        ("bytes=-20", 180, 200),
        ("bytes=-999", 0, 200),
    ],
)
def test_a_range_is_those_bytes(server: FolderServer, asked: str, start: int, stop: int) -> None:
    answer, body = ask(server, "/data/part.parquet", asked)
    assert (answer.status, body) == (206, DATA[start:stop])
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/200"


@pytest.mark.parametrize("asked", ["bytes=200-", "bytes=200-300", "bytes=20-10", "bytes=-0"])
def test_a_range_of_which_nothing_is_there_is_refused_with_the_size(server: FolderServer, asked: str) -> None:
    answer, _ = ask(server, "/data/part.parquet", asked)
    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */200")


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,4-5",
        "bytes=-",
        "bytes=a-b",
        "lines=1-2",
        "bytes=0-9x",
        f"bytes=0-{'9' * 5000}",
        f"bytes=-{'9' * 5000}",
    ],
)
def test_several_ranges_and_what_is_none_are_answered_by_the_whole_file(server: FolderServer, asked: str) -> None:
    answer, body = ask(server, "/data/part.parquet", asked)
    assert (answer.status, body) == (200, DATA) and "Content-Range" not in answer.headers


@pytest.mark.parametrize("host", ["evil.example.org", "evil.example.org:{}", "127.0.0.1", "localhost:1", ""])
def test_whoever_asks_under_another_name_is_refused(server: FolderServer, host: str) -> None:
    answer, body = ask(server, "/", host=host.format(server.server_address[1]))
    assert (answer.status, body) == (403, b"")


def test_localhost_is_a_name_of_this_machine(server: FolderServer) -> None:
    assert ask(server, "/", host=f"LOCALHOST:{server.server_address[1]}")[0].status == 200


def test_head_says_the_size_alone(server: FolderServer) -> None:
    answer, body = ask(server, "/data/part.parquet", method="HEAD")
    assert (answer.status, answer.headers["Content-Length"], body) == (200, "200", b"")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret",
        "/%2e%2e/secret",
        "/data/../../secret",
        "/data",
        "/nothing",
        "//etc/passwd",
        "/%00",
        "/" + 300 * "a",
        "/circle",
    ],
)
def test_nothing_outside_the_folder_and_no_folder_is_served(server: FolderServer, path: str) -> None:
    assert ask(server, path)[0].status == 404
