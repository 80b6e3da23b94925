"""Writes the explorer's pages: their files, what they know, and the parts that they read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

from cluster.catalog import Catalog, open_catalog
from cluster.explore.place import Place, make_place
from cluster.explore.site import explorer_stages, make_site
from cluster.ledger import get_checked
from cluster.report.colours import HEAT, series_css
from cluster.stores.base import Store, prefetch
from schemas.errors import UsageError
from schemas.plans import StoredPart

SHARED_STYLES = ("page.css",)
"""Of the report: the explorer looks like it."""
TABLES = ("explorer_features", "explorer_index")
DATA = "data"
MARKER = "miclip.json"
"""The file that says that a place is ours to renew, and which parts its pages name no more."""
STAY = 2
"""So many renewals with other parts outlives a part that is named no more, for browsers that have older pages open."""
_PART = re.compile(rf"{DATA}/({'|'.join(TABLES)})-[0-9a-f]{{20}}\.parquet")


class Written(NamedTuple):
    """What pages hold: units, parts, bytes of parts that were copied, and those that were there already; old parts that went."""

    units: int
    parts: int
    copied: int
    kept: int
    removed: int


def renew_pages(store: Store, to: str) -> Written:
    """Write or renew the pages of every pipeline's newest tables. Raises as `write_pages`."""
    return write_pages(open_catalog(store), to)


def check_place(to: str) -> None:
    """Make sure that pages may be written there, without writing. Raises as `write_pages` does for a place."""
    _check_ours(make_place(to).sizes(), to)


def write_pages(catalog: Catalog, to: str | Path, base_url: str | None = None) -> Written:
    """Write or renew pages; a part that is there already is not copied again, for parts never change.

    to: a folder or `s3://bucket[/prefix]`, empty or made by this.
    base_url: where the store is served; parts are read from there and none is copied.

    Raises:
        UnknownTable: nothing in scope has pages. UsageError: the place has files that we have not made, or cannot be
            written. DamagedPart: a part is gone or is not what was published. StoreDenied, StoreMissing, StoreUnreachable: the
            bucket is the trouble.
    """
    stages = explorer_stages(catalog)
    parts = [part for stage in stages for table in TABLES for part in stage.tables[table]]
    site = make_site(catalog, lambda part: _url(part, base_url))
    assets, place = dict(_assets(base_url)), make_place(str(to))
    there = place.sizes()
    _check_ours(there, str(to))
    left = _begin(place, there)
    copied, kept = _copy_parts(catalog, parts, place, there) if base_url is None else (0, 0)
    before, page = place.read("site.json"), assets.pop("index.html")
    for name, text in assets.items():
        place.write(name, text.encode())
    place.write("site.json", json.dumps(site, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode())
    place.write("index.html", page.encode())  # last: whoever finds it finds all that it asks for
    removed = _remove_old(place, left, _named(_object(before)), _named(site))
    return Written(sum(stage.rows("explorer_features") for stage in stages), len(parts), copied, kept, removed)


def _url(part: StoredPart, base_url: str | None) -> str:
    """Where the page finds a part: at its key below the store, or beside itself, named by what it holds."""
    if base_url is not None:
        return f"{base_url.rstrip('/')}/{part.key}"
    return f"{DATA}/{part.table}-{part.sha256[:20]}.parquet"


def _copy_parts(catalog: Catalog, parts: list[StoredPart], place: Place, there: Mapping[str, int]) -> tuple[int, int]:
    """Bytes that were copied, and that were there."""
    missing = [part for part in parts if there.get(_url(part, None)) != part.bytes]
    for part, data in prefetch(lambda one: get_checked(catalog.store, one), missing):
        place.write(_url(part, None), data)
    copied = sum(part.bytes for part in missing)
    return copied, sum(part.bytes for part in parts) - copied


# ---------------------------------------------------------------- what is ours


def _check_ours(there: Mapping[str, int], to: str) -> None:
    if there and MARKER not in there:
        raise UsageError(
            f"pages at {to}: it holds files that miclip explore has not made, such as {min(there)}; "
            "name a place that is empty or not there yet, or empty this one"
        )


def _begin(place: Place, there: Mapping[str, int]) -> dict[str, int]:
    """Mark a new place as ours; parts that are named no more, by how many renewals ago."""
    left: dict[str, int] | None = _object(place.read(MARKER)).get("left") if MARKER in there else None
    if left is None:
        _mark(place, {})
    return left or {}


def _object(text: bytes | None) -> dict[str, Any]:
    """What a file of pages holds; nothing if it is not there or was cut by whoever copied it."""
    try:
        held: dict[str, Any] = json.loads(text or "{}")
    except ValueError:
        return {}
    return held


def _mark(place: Place, left: Mapping[str, int]) -> None:
    said = "pages of miclip explore, which renews them and removes parts that they have long not named"
    place.write(MARKER, json.dumps({"what": said, "left": left}, indent=1).encode())


def _remove_old(place: Place, left: Mapping[str, int], before: set[str], now: set[str]) -> int:
    """Remove parts that pages have not named for `STAY` renewals with other parts, and count for the rest; how many went.

    A part that nobody has named yet may be on its way into pages that somebody else renews just now: it counts from here.
    """
    step = int(before != now)
    unnamed = {name: left.get(name, 0) + step for name in place.sizes() if _PART.fullmatch(name) and name not in now}
    old = [name for name, renewals in unnamed.items() if renewals > STAY]
    for name in old:
        place.remove(name)
        del unnamed[name]
    if unnamed != left:
        _mark(place, unnamed)
    return len(old)


def _named(site: Mapping[str, Any]) -> set[str]:
    """The parts that a site.json names."""
    return {part["url"] for units in site.get("sets", ()) for part in (*units["features"], *units["index"])}


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
