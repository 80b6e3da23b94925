"""The thumbnails of a page, each stored once, and which part of an image a model saw."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from cluster.report.html import Html, script_json
from jobs.shown import map_bytes

COLUMNS = ("image_id", "uri", "width", "height", "label", "caption", "duplicate_of", "thumbnail")


class Pictures:
    """The images that sections show: what is known of each, and its number among the page's thumbnails.

    load: rows of `images` with `COLUMNS`, by ids.
    """

    def __init__(self, load: Callable[[Sequence[str]], list[dict[str, Any]]]) -> None:
        self._load = load
        self._rows: dict[str, dict[str, Any] | None] = {}
        self._numbers: dict[str, int] = {}

    def want(self, image_ids: Iterable[str]) -> None:
        """Look images up that will be shown."""
        fresh = sorted(set(image_ids) - self._rows.keys())
        if not fresh:
            return
        found = {row["image_id"]: row for row in self._load(fresh) if row["duplicate_of"] is None}
        self._rows.update({image_id: found.get(image_id) for image_id in fresh})
        for image_id in fresh:
            if image_id in found:
                self._numbers[image_id] = len(self._numbers)

    def add(self, name: str, data: bytes) -> None:
        """Show a picture that is no image of an index, such as one that a model drew; JPEG or PNG."""
        if name not in self._rows:
            self._numbers[name] = len(self._numbers)
        self._rows[name] = {"uri": name, "label": None, "caption": None, "width": 1, "height": 1, "thumbnail": data}

    def number(self, image_id: str) -> int | None:
        """Place in the page's list of thumbnails; None of an image that no index in scope has, or that nobody wanted."""
        return self._numbers.get(image_id)

    def words(self, image_id: str) -> str:
        """What a person calls the image: label or caption, and the name of its file."""
        row = self._rows.get(image_id)
        if row is None:
            return image_id
        name = row["uri"].rpartition("/")[2]
        return " · ".join(filter(None, [row["label"], row["caption"] if not row["label"] else None, name]))

    def size(self, image_id: str) -> tuple[int, int]:
        """Width and height in pixels; a square where nothing is known."""
        row = self._rows.get(image_id)
        return (row["width"], row["height"]) if row else (1, 1)

    def as_script(self) -> Html | None:
        """JPEGs in base64, in the order of `number`; None where nothing is shown."""
        rows = (self._rows[image_id] for image_id in self._numbers)
        data = [base64.b64encode(row["thumbnail"]).decode() for row in rows if row]
        return script_json(data, id="thumbnails") if data else None


def pack_map(values: Iterable[float], largest: float) -> str:
    """Values as bytes, 255 for the largest, in base64; negative ones are 0."""
    return base64.b64encode(map_bytes(np.array(list(values)), largest)).decode()
