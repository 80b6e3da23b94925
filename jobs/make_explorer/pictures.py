"""The top images of a range of units: thumbnails of the index side by side in one JPEG per unit, and maps as bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from jobs.columns import as_ranges
from jobs.make_explorer.plan import COVER_TILE, COVERS, MOST_GRID, TILE, geometry_of, is_of_features
from jobs.protocol import Inputs
from jobs.shown import map_bytes, pool_map, seen
from schemas.plans import Plan

Row = dict[str, Any]
QUALITY = 82
NAMES = 120
"""Letters of what is said of an image."""


@dataclass(frozen=True)
class Shown:
    """Pictures of one unit, as the columns of that name of explorer_features."""

    images: list[Row]
    thumbnails: bytes | None = None
    cover: bytes | None = None
    maps: bytes | None = None
    map_h: int | None = None
    map_w: int | None = None
    map_most: float | None = None


class Pictures:
    """The thumbnails of all images that some units show, each decoded once."""

    def __init__(self, plan: Plan, inputs: Inputs, tops: Mapping[int, Sequence[Row]]) -> None:
        self._geometry, self._square = geometry_of(plan), plan.stage.params["geometry"] == "square"
        wanted = sorted({row["image_index"] for rows in tops.values() for row in rows})
        self._images: dict[int, Row] = {}
        self._thumbnails: dict[int, Image.Image] = {}
        columns = ("image_index", "image_id", "uri", "label", "caption", "width", "height", "thumbnail")
        for batch in inputs.table(plan.stage.inputs["index"], "images", columns, ("image_index", as_ranges(wanted))):
            for row in batch.to_pylist():
                with Image.open(BytesIO(row.pop("thumbnail"))) as picture:
                    self._thumbnails[row["image_index"]] = picture.convert("RGB")
                self._images[row["image_index"]] = row

    def show(self, rows: Sequence[Row]) -> Shown:
        """What a page shows of one unit. rows: its images by rank, with `value` and maps [h, w] or None as `map`."""
        if not rows:
            return Shown([])
        pictures = [self._thumbnails[row["image_index"]] for row in rows]
        maps = [row["map"] for row in rows]
        shown = Shown(
            images=[self._say(row) for row in rows],
            thumbnails=_jpeg([_fit(picture, TILE) for picture in pictures]),
            cover=_jpeg([_fill(picture, COVER_TILE) for picture in pictures[:COVERS]]),
        )
        return shown if any(values is None for values in maps) else _with_maps(shown, maps)

    def _say(self, row: Row) -> Row:
        image = self._images[row["image_index"]]
        file = image["uri"].rpartition("/")[2]
        words = " · ".join(filter(None, [image["label"] or image["caption"], file]))[:NAMES]
        box = seen(self._geometry, self._square, image["width"], image["height"])
        return {
            "id": image["image_id"],
            "words": words,
            "width": image["width"],
            "height": image["height"],
            "value": row["value"],
            "seen": [round(part, 4) for part in box],
        }


def _with_maps(shown: Shown, maps: Sequence[np.ndarray]) -> Shown:
    pooled = np.stack([pool_map(values.astype(np.float64), MOST_GRID) for values in maps])
    most = float(pooled.max())
    height, width = pooled.shape[1:]
    return Shown(shown.images, shown.thumbnails, shown.cover, map_bytes(pooled, most), height, width, most)


def _fit(picture: Image.Image, side: int) -> Image.Image:
    """The whole picture in the middle of a square."""
    ratio = side / max(picture.size)
    width, height = (max(1, round(length * ratio)) for length in picture.size)
    tile = Image.new("RGB", (side, side))
    tile.paste(picture.resize((width, height), Image.Resampling.BICUBIC), ((side - width) // 2, (side - height) // 2))
    return tile


def _fill(picture: Image.Image, side: int) -> Image.Image:
    """The middle square of a picture."""
    width, height = picture.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return picture.crop((left, top, left + short, top + short)).resize((side, side), Image.Resampling.BICUBIC)


def _jpeg(tiles: Sequence[Image.Image]) -> bytes:
    side = tiles[0].width
    strip = Image.new("RGB", (side * len(tiles), side))
    for number, tile in enumerate(tiles):
        strip.paste(tile, (number * side, 0))
    out = BytesIO()
    strip.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


# ---------------------------------------------------------------- which images


def read_tops(inputs: Inputs, plan: Plan, ranges: Sequence[tuple[int, int]]) -> dict[int, list[Row]]:
    """Unit -> its first images by rank: image_index, value, and its map [h, w] or None."""
    found: dict[int, list[Row]] = defaultdict(list)
    features = is_of_features(plan)
    by, table = ("feature", "sae_top_images") if features else ("unit", "top_images")
    more = ("map", "grid_h", "grid_w") if features else ("token",)
    most = int(str(plan.stage.params["top"]))
    columns = (by, "rank", "image_index", "value", *more)
    for batch in inputs.table(plan.stage.inputs["units"], table, columns, (by, ranges)):
        for row in batch.to_pylist():
            if row["rank"] < most:
                found[row[by]].append({**row, "map": _stored(row) if features else _peak(row["token"], plan)})
    return {unit: sorted(rows, key=lambda row: row["rank"]) for unit, rows in found.items()}


def _stored(row: Row) -> np.ndarray | None:
    return None if row["map"] is None else np.array(row["map"], np.float32).reshape(row["grid_h"], row["grid_w"])


def _peak(token: int, plan: Plan) -> np.ndarray | None:
    """A map of the one patch that is known of a neuron, the one where it is largest; None without a grid."""
    params: Any = plan.stage.params
    if params["grid"] is None:
        return None
    peak = np.zeros(params["grid"][0] * params["grid"][1], np.float32)
    if 0 <= token - params["first_patch"] < len(peak):
        peak[token - params["first_patch"]] = 1.0
    return peak.reshape(params["grid"])
