"""A small server of one folder on this machine: whole files and byte ranges of them, nothing else."""

from __future__ import annotations

import re
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cluster.explore.place import headers_of

_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")
CHUNK = 1 << 20


class FolderServer(ThreadingHTTPServer):
    """Serves the files below a folder at 127.0.0.1; `url` is where."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        """port: 0 takes a free one. Raises OSError: the port is taken."""
        self.folder = folder.resolve()
        super().__init__(("127.0.0.1", port), _Handler)

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
        path = self._find()
        if path is None:
            self._head(HTTPStatus.NOT_FOUND, {"Content-Length": "0"})
            return
        size = path.stat().st_size
        span = _parse_range(self.headers.get("Range"), size)
        if span is None:
            self._head(
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}", "Content-Length": "0"}
            )
            return
        (start, stop), told = span, headers_of(path.name)
        about = {
            "Content-Type": told.content_type,
            "Content-Length": str(stop - start),
            "Accept-Ranges": "bytes",
            "Cache-Control": told.cache_control,
        }
        if "Range" in self.headers:
            self._head(HTTPStatus.PARTIAL_CONTENT, {**about, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})
        else:
            self._head(HTTPStatus.OK, about)
        if with_body:
            self._send(path, start, stop)

    def _find(self) -> Path | None:
        """The file that is asked for, if it is one below the folder."""
        asked = unquote(urlsplit(self.path).path).lstrip("/") or "index.html"
        path = (self.server.folder / asked).resolve() if "\0" not in asked else self.server.folder
        return path if path.is_file() and path.is_relative_to(self.server.folder) else None

    def _head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, path: Path, start: int, stop: int) -> None:
        try:
            with path.open("rb") as file:
                file.seek(start)
                while start < stop and (data := file.read(min(CHUNK, stop - start))):
                    self.wfile.write(data)
                    start += len(data)
        except (BrokenPipeError, ConnectionResetError):  # the reader has gone on to another page
            self.close_connection = True


def _parse_range(asked: str | None, size: int) -> tuple[int, int] | None:
    """[start, stop) of a file of this size; all of it where nothing is asked, None where there is no such range."""
    if asked is None:
        return 0, size
    match = _RANGE.match(asked)
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        start, stop = max(0, size - int(match[2])), size
    else:
        start, stop = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
    return (start, stop) if start < stop else None
