"""Writes the folder of the explorer: its page, what the page knows, and the parts that it reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

from cluster.catalog import Catalog
from cluster.explore.site import explorer_stages, make_site
from cluster.ledger import get_checked
from cluster.report.colours import HEAT, series_css
from cluster.stores.base import prefetch
from schemas.errors import UsageError
from schemas.plans import StoredPart

SHARED_STYLES = ("page.css",)
"""Of the report: the explorer looks like it."""
TABLES = ("explorer_features", "explorer_index")
DATA = "data"


class Written(NamedTuple):
    """What a folder holds: units, parts, bytes of parts that were copied, and those that were there already."""

    units: int
    parts: int
    copied: int
    kept: int


def write_folder(catalog: Catalog, to: Path, base_url: str | None = None) -> Written:
    """Write or renew a folder; a part that is there already is not copied again, for parts never change.

    base_url: where the store is served; parts are read from there and none is copied.

    Raises:
        UnknownTable: nothing in scope has pages. UsageError: the folder cannot be written. DamagedPart: a part is gone or
            is not what was published.
    """
    stages = explorer_stages(catalog)
    parts = [part for stage in stages for table in TABLES for part in stage.tables[table]]
    site = make_site(catalog, lambda part: _place(part, base_url))
    assets = list(_assets(base_url))
    try:
        to.mkdir(parents=True, exist_ok=True)
        copied, kept = _copy_parts(catalog, parts, to) if base_url is None else (0, 0)
        for name, text in assets:
            _write(to / name, text.encode())
        _write(to / "site.json", json.dumps(site, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode())
    except OSError as error:
        raise UsageError(f"--to {to}: {error.strerror or error}; name a folder that can be written") from None
    return Written(sum(stage.rows("explorer_features") for stage in stages), len(parts), copied, kept)


def _place(part: StoredPart, base_url: str | None) -> str:
    """Where the page finds a part: at its key below the store, or in the folder, named by what it holds."""
    if base_url is not None:
        return f"{base_url.rstrip('/')}/{part.key}"
    return f"{DATA}/{part.table}-{part.sha256[:20]}.parquet"


def _copy_parts(catalog: Catalog, parts: list[StoredPart], to: Path) -> tuple[int, int]:
    missing = [part for part in parts if not _is_there(to / _place(part, None), part)]
    for part, data in prefetch(lambda one: get_checked(catalog.store, one), missing):
        _write(to / _place(part, None), data)
    return sum(part.bytes for part in missing), sum(part.bytes for part in parts) - sum(p.bytes for p in missing)


def _is_there(path: Path, part: StoredPart) -> bool:
    return path.is_file() and path.stat().st_size == part.bytes


def _write(path: Path, data: bytes) -> None:
    """In one step, so that a page that is open never reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".half")
    half.write_bytes(data)
    half.replace(path)


# ---------------------------------------------------------------- the page


def _assets(base_url: str | None) -> Iterator[tuple[str, str]]:
    """(name, text) of every file of the page; what the report has too is taken from there."""
    for name, asset in _walk(files("cluster.explore") / "assets"):
        text = asset.read_text(encoding="utf-8")
        if name == "index.html":
            text = text.replace("CONNECT", _origin(base_url))
        if name == "style.css":
            shared = [(files("cluster.report") / "assets" / one).read_text(encoding="utf-8") for one in SHARED_STYLES]
            text = "\n".join([series_css(), *shared, text])
        yield name, text
    yield "heat.js", f"export const HEAT = {json.dumps(HEAT)};\n"


def _walk(folder: Traversable, before: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda one: one.name):
        if entry.is_dir():
            yield from _walk(entry, f"{before}{entry.name}/")
        else:
            yield before + entry.name, entry


def _origin(base_url: str | None) -> str:
    """What the page may ask for besides itself: the host of the parts, where they are elsewhere."""
    if base_url is None:
        return ""
    scheme, _, rest = base_url.partition("://")
    if scheme not in ("http", "https") or not rest or any(letter in rest for letter in " ;,'\"<>@?#"):
        raise UsageError(
            f"--base-url {base_url}: expected http:// or https:// and where the store is served, without a name, a password or a query"
        )
    return f"{scheme}://{rest.split('/')[0]}"
