"""A small server of one folder on this machine: whole files and byte ranges of them, nothing else."""

from __future__ import annotations

import os
import re
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from cluster.explore.place import headers_of

_RANGE = re.compile(r"bytes=(?:(?P<from>\d{1,18})-(?P<to>\d{0,18})|-(?P<last>\d{1,18}))\Z")
"""One range. Several, or what is none, are answered by the whole file, as RFC 9110 has it for what a server does not serve."""
CHUNK = 1 << 20


class FolderServer(ThreadingHTTPServer):
    """Serves the files below a folder at 127.0.0.1; `url` is where."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        """port: 0 takes a free one. Raises OSError: the port is taken."""
        self.folder = folder.resolve()
        super().__init__(("127.0.0.1", port), _Handler)
        # a page of another origin whose name was made to lead here asks under that name
        self.names = {f"{host}:{self.server_address[1]}" for host in ("127.0.0.1", "localhost")}

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that closes its connection is no error; what else goes wrong is told as ever."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: FolderServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The file or a range of it."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """What a GET would say of itself."""
        self._answer(with_body=False)

    def log_message(self, format: str, *words: object) -> None:
        """Nothing: the terminal belongs to whoever opened the pages."""

    def _answer(self, with_body: bool) -> None:
        if self.headers.get("Host", "").lower() not in self.server.names:
            self._head(HTTPStatus.FORBIDDEN, {"Content-Length": "0"})
            return
        file = self._open()
        if file is None:
            self._head(HTTPStatus.NOT_FOUND, {"Content-Length": "0"})
            return
        with file:
            self._answer_from(file, with_body)

    def _answer_from(self, file: BinaryIO, with_body: bool) -> None:
        size = os.fstat(file.fileno()).st_size
        asked = _RANGE.match(self.headers.get("Range", ""))
        span = _clip(asked, size) if asked else (0, size)
        if span is None:
            self._head(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
            )
            return
        (start, stop), told = span, headers_of(file.name)
        about = {
            "Content-Type": told.content_type,
            "Content-Length": str(stop - start),
            "Accept-Ranges": "bytes",
            "Cache-Control": told.cache_control,
        }
        if asked:
            self._head(HTTPStatus.PARTIAL_CONTENT, {**about, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})
        else:
            self._head(HTTPStatus.OK, about)
        if with_body:
            self._send(file, start, stop)

    def _open(self) -> BinaryIO | None:
        """The file that is asked for, if it is one below the folder and can be read."""
        try:
            asked = unquote(urlsplit(self.path).path).lstrip("/") or "index.html"
            path = (self.server.folder / asked).resolve()
            return path.open("rb") if path.is_relative_to(self.server.folder) and path.is_file() else None
        except (OSError, ValueError, RuntimeError):  # no name that a file can have, or links in a circle
            return None

    def _head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, file: BinaryIO, start: int, stop: int) -> None:
        try:
            file.seek(start)
            while start < stop and (data := file.read(min(CHUNK, stop - start))):
                self.wfile.write(data)
                start += len(data)
        except (BrokenPipeError, ConnectionResetError):  # the reader has gone on to another page
            self.close_connection = True


def _clip(asked: re.Match[str], size: int) -> tuple[int, int] | None:
    """[start, stop) of a file of this size; None where none of it is in the range."""
    if asked["last"] is not None:
        start, stop = max(0, size - int(asked["last"])), size
    else:
        start, stop = int(asked["from"]), min(size, int(asked["to"] or size) + 1)
    return (start, stop) if start < stop else None
