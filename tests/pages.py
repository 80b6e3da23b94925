"""Pages of the report as tests look at them: rendered from a store, read strictly, and run in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from cluster.report.data import load_report
from cluster.report.html import VOID
from cluster.report.page import make_page
from cluster.report.sections import SECTIONS
from cluster.stores import Store, make_store
from tests.chromium import chromium
from tests.made_up_saes import MODEL, SITE

EXTRACT = f"""\
kind: extract
name: base
model: {MODEL}
images: {{ref: "world:seed=0,n=24"}}
sites: ["{SITE}"]
outputs: [activation_moments]
"""


class Checker(HTMLParser):
    """Reads a page as a strict parser would: every element closed in order; keeps what tests ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in VOID | {"link"}:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name, (name, self.getpos())

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def values(self, attribute: str) -> list[str]:
        return [str(found[attribute]) for _, found in self.elements if attribute in found]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def render(store: Store, run: str | None = None) -> str:
    return make_page(load_report(store, run), SECTIONS)


def images_of(store: Store) -> list[dict[str, Any]]:
    data = load_report(store)
    return data.table("images", ["image_id", "image_index", "uri"]).to_pylist()


def copy_of(base: Path, folder: Path) -> Store:
    shutil.copytree(base, folder)
    return make_store(str(folder))


def check_page(page: str) -> None:
    """Every element is closed in order, no id is there twice, every link leads somewhere, everything usable has a name."""
    found = Checker(page)
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    targets = [href for href in found.values("href") if href != "data:,"]
    assert targets and all(href.startswith("#") and href[1:] in ids for href in targets)
    for name, attributes in found.elements:
        if name in ("input", "select", "svg") or attributes.get("role") in ("img", "region"):
            assert attributes.get("aria-label") or attributes.get("aria-hidden"), (name, attributes)


def dump_dom(page: str, folder: Path, script: str = "", width: int = 1400, fragment: str = "") -> str:
    """The page after its scripts have run, and then one of the test, which its own policy would not let in.

    width: of the window, in pixels. fragment: opens the page at a place, such as `#methods`.

    Raises:
        AssertionError: something was written to the console, such as an error or a refused request.
    """
    if script:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        page = page.replace("</body>", f"<script>addEventListener('load', () => {{ {script} }})</script></body>")
    (folder / "page.html").write_text(page)
    words = [str(chromium()), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000",
             f"--window-size={width},900", "--dump-dom", f"file://{folder}/page.html{fragment}"]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout
