"""One picture with a map of values over the part of it that a model saw; the page's script draws it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from cluster.report.data import ReportData
from cluster.report.html import Html, tag
from cluster.report.pictures import pack_map
from jobs.shown import WHOLE, Box, seen
from schemas.models import ModelFacts
from schemas.plans import load_json

ASSETS = ("pictures.css", "pictures.js")


class Heat(NamedTuple):
    """Values of patches, row-major; `largest` is what the brightest colour means."""

    values: Sequence[float]
    rows: int
    columns: int
    largest: float
    box: Box = WHOLE


class Views:
    """Which part of each image a model saw."""

    def __init__(self, data: ReportData) -> None:
        rows = data.table("models", ["model", "facts"]).to_pylist()
        self._geometries = {row["model"]: load_json(ModelFacts, row["facts"]).geometry for row in rows}
        self._data = data

    def box(self, model: str, stage: str, image_id: str) -> Box:
        """As `seen`, following the stages from which this one was made."""
        size = self._data.pictures.size(image_id)
        return seen(self._geometries.get(model), self._is_square(stage), *size)

    def _is_square(self, stage: str) -> bool:
        published = self._data.stages.get(stage)
        if published is None:
            return False
        spec = published.stage
        return spec.params.get("geometry") == "square" or any(self._is_square(i) for i in spec.inputs.values())


def make_tile(data: ReportData, image_id: str, label: str, words: str, heat: Heat | None = None) -> Html:
    """A picture that sections wanted before. label: for readers without eyes; words: shown under the pointer."""
    number = data.pictures.number(image_id)
    if number is None:
        return tag("span", "no thumbnail", class_="tile", title=words)
    return tag(
        "canvas",
        class_="tile",
        width=96,
        height=96,
        role="img",
        aria_label=label,
        data_image=number,
        data_words=words,
        data_largest=f"{heat.largest:.5g}" if heat else None,
        data_map=pack_map(heat.values, heat.largest) if heat else None,
        data_grid=f"{heat.rows} {heat.columns}" if heat else None,
        data_seen=" ".join(f"{v:.4g}" for v in heat.box) if heat else None,
    )


class Strip(NamedTuple):
    """A row of a sheet: what stands before it, and its map over each image.

    label: for readers without eyes. heats: one for each image; none at all shows the images as they are. words: of each image,
    shown under the pointer.
    """

    head: Html
    label: str
    heats: Sequence[Heat | None] = ()
    words: Sequence[str] = ()


def make_sheet(data: ReportData, image_ids: Sequence[str], image_words: Sequence[str], strips: Sequence[Strip]) -> Html:
    """The same images once for each of several maps, side by side; the script makes the pictures when they come into view.

    What all rows share is written once, so that a page holds thousands of maps.
    """
    numbers = [data.pictures.number(image_id) for image_id in image_ids]
    return tag(
        "div",
        (_row(strip, len(image_ids)) for strip in strips),
        class_="sheet",
        data_images=" ".join("-" if number is None else str(number) for number in numbers),
        data_words=json.dumps(list(image_words), ensure_ascii=False, separators=(",", ":")),
        style=f"--n:{len(image_ids)}",
    )


def _row(strip: Strip, images: int) -> Html:
    known = [heat for heat in strip.heats if heat is not None]
    told: dict[str, Any] = {"data_words": "\n".join(strip.words)} if strip.words else {}
    if known:
        largest = max(heat.largest for heat in known)
        boxes = [" ".join(f"{v:.4g}" for v in (heat.box if heat else WHOLE)) for heat in strip.heats]
        told |= {
            "data_maps": " ".join("-" if heat is None else pack_map(heat.values, largest) for heat in strip.heats),
            "data_largest": f"{largest:.5g}",
            "data_grid": f"{known[0].rows} {known[0].columns}",
            "data_seen": boxes[0] if len(set(boxes)) == 1 else ";".join(boxes),
        }
    row = tag("div", class_="strip", role="group", aria_label=strip.label, **told)
    return tag("div", tag("div", strip.head, class_="head"), row, class_="row")
