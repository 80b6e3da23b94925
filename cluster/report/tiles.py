"""One picture with a map of values over the part of it that a model saw; the page's script draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cluster.report.data import ReportData
from cluster.report.html import Html, tag
from cluster.report.pictures import WHOLE, Box, pack_map, seen
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
