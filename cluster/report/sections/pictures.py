"""The thumbnails under patch maps, each stored once in the page, and which part of an image the model saw."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np

from cluster.report.data import ReportData
from cluster.report.html import Html, script_json
from schemas.models import Geometry, ModelFacts
from schemas.plans import load_json

Box = tuple[float, float, float, float]
"""Left, top, width and height, as fractions of an image; below 0 and above 1 where it is padded."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class Pictures:
    """Thumbnails of some images and what is known of each."""

    def __init__(self, data: ReportData, image_ids: Iterable[str]) -> None:
        wanted = sorted(set(image_ids))
        columns = ["image_id", "uri", "width", "height", "label", "caption", "duplicate_of", "thumbnail"]
        rows = data.table("images", columns, {"image_id": wanted}).to_pylist() if wanted and data.has("images") else []
        self._rows = {row["image_id"]: row for row in rows if row["duplicate_of"] is None}
        self._numbers = {image_id: n for n, image_id in enumerate(i for i in wanted if i in self._rows)}

    def number(self, image_id: str) -> int | None:
        """Place in the page's list of thumbnails; None of an image that no index in scope has."""
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

    def as_script(self) -> Html:
        """JPEGs in base64, in the order of `number`."""
        data = [base64.b64encode(self._rows[image_id]["thumbnail"]).decode() for image_id in self._numbers]
        return script_json(data, id="thumbnails")


def load_geometries(data: ReportData) -> dict[str, Geometry]:
    """How each inspected model sees an image."""
    rows = data.table("models", ["model", "facts"]).to_pylist()
    return {row["model"]: load_json(ModelFacts, row["facts"]).geometry for row in rows}


def seen(geometry: Geometry | None, square: bool, width: int, height: int) -> Box:
    """The part of an image of this size that reaches the model, whose patches the grid divides.

    square: the centre square that all models share, instead of the model's own transform.
    """
    if square or geometry is None:
        side = min(width, height)
        return ((1 - side / width) / 2, (1 - side / height) / 2, side / width, side / height) if square else WHOLE
    ratios = geometry.resize_hw[0] / height, geometry.resize_hw[1] / width
    chosen = {"squash": ratios, "shortest": (max(ratios),) * 2, "longest": (min(ratios),) * 2}[geometry.resize]
    high, wide = geometry.crop_hw[0] / (height * chosen[0]), geometry.crop_hw[1] / (width * chosen[1])
    return ((1 - wide) / 2, (1 - high) / 2, wide, high)


def pack_map(values: Iterable[float], largest: float) -> str:
    """Codes as bytes, 255 for the feature's largest, in base64."""
    scaled = np.asarray(list(values), dtype=np.float64) / (largest or 1.0) * 255
    return base64.b64encode(np.clip(np.round(scaled), 0, 255).astype(np.uint8).tobytes()).decode()
