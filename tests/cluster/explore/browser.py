"""A folder of the explorer in headless Chromium: a script of the test acts on the pages, and every request is kept."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.explore.server import FolderServer, _Handler
from tests.chromium import chromium

HELPERS = """\
const $ = (s) => document.querySelector(s), $$ = (s) => [...document.querySelectorAll(s)];
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
async function until(holds, what) {
  for (let n = 0; n < 6000; n++) { const found = holds(); if (found) return found; await sleep(20); }
  throw new Error(`waited in vain for ${what ?? holds}`);
}
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
async function visit(hash) { $("h1")?.remove(); if (location.hash === hash) location.hash = "#/nowhere"; location.hash = hash; await until(() => $("h1"), hash); return $("h1").innerText; }
const write = (field, text) => { field.focus(); field.value = text; field.dispatchEvent(new Event("input", { bubbles: true })); };
const say = async (what) => fetch("/say", { method: "POST", body: JSON.stringify(what) });
"""


class Request(NamedTuple):
    """A path that the pages asked for, and the range of it."""

    path: str
    range: str | None


class Seen(NamedTuple):
    """What a script returned, what the pages asked for, and what Chromium wrote on its console."""

    value: Any
    requests: Sequence[Request]
    console: Sequence[str]


class _Listening(_Handler):
    server: _Server

    def do_GET(self) -> None:
        self.server.requests.append(Request(self.path, self.headers.get("Range")))
        super().do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.said.put(json.loads(body))
        self._head(200, {"Content-Length": "0"})  # type: ignore[arg-type]


class _Server(FolderServer):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.RequestHandlerClass = _Listening
        self.requests: list[Request] = []
        self.said: queue.Queue[Any] = queue.Queue()


def act(folder: Path, script: str, width: int = 1400, dark: bool = False, seconds: float = 150) -> Seen:
    """Open the folder, run the body of an async function in it, and give what it returns.

    No host but this machine can be reached. Raises AssertionError: the script failed.
    """
    body = f"{HELPERS}\n(async () => {{ {script} }})().then((value) => say({{ value }}), (error) => say({{ error: String(error.stack) }}));"
    (folder / "driver.js").write_text(body)
    page = (folder / "index.html").read_text()
    (folder / "driven.html").write_text(
        page.replace("</head>", '<script type="module" src="driver.js"></script></head>')
    )
    with _Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        words = [
            str(chromium()), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--remote-debugging-port=0",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--window-size={width},900",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []), f"{server.url}driven.html",
        ]  # fmt: skip
        browser = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            said = server.said.get(timeout=seconds)
        finally:
            browser.terminate()
            _, errors = browser.communicate(timeout=20)
            server.shutdown()
            thread.join()
    console = re.findall(r"CONSOLE.*", errors)
    assert "error" not in said, f"{said['error']}\n{console}"
    return Seen(said["value"], server.requests, console)
