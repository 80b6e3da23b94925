"""The images that drive units most, of neurons and of features alike, with what is known of where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from cluster.report.data import ReportData
from cluster.report.sections.places import Place
from cluster.report.tiles import Heat, Views
from jobs.shown import Box

Images = dict[int, list[dict[str, Any]]]


def load_unit_images(data: ReportData, place: Place, units: Sequence[int], most: int) -> Images:
    """Unit -> its images, strongest first; of several stages that know the unit the first is believed."""
    if not units:
        return {}
    if place.sae:
        name, unit, more = "sae_top_images", "feature", ["map", "grid_h", "grid_w"]
        where: dict[str, Any] = {"sae": place.sae}
    else:
        name, unit, more = "top_images", "unit", []
        where = {"model": place.model, "site": place.site}
    where |= {unit: list(units), "rank": list(range(most))}
    columns = ["stage", unit, "rank", "image_id", "value", "token", *more]
    rows = data.table(name, columns, where).sort_by("rank").to_pylist()
    first = min((row["stage"] for row in rows), default=None)
    found: Images = defaultdict(list)
    for row in rows:
        if row["stage"] == first:
            found[row[unit]].append(row)
    return dict(found)


class Grids:
    """Rows and columns of the positions of a site: of patches the model's, of others those that maps of features have."""

    def __init__(self, data: ReportData) -> None:
        rows = data.table("models", ["model", "grid_h", "grid_w"]).to_pylist()
        self._models = {row["model"]: (row["grid_h"], row["grid_w"]) for row in rows if row["grid_h"] and row["grid_w"]}
        maps = data.table("sae_top_images", ["model", "site", "grid_h", "grid_w"], {"rank": [0]})
        kinds = maps.group_by(maps.column_names).aggregate([]).to_pylist()
        self._sites = {(row["model"], row["site"]): (row["grid_h"], row["grid_w"]) for row in kinds if row["grid_h"]}

    def of(self, place: Place) -> tuple[int, int]:
        """(0, 0) where positions are no grid, or it is not known."""
        if place.site.endswith("@patch"):
            return self._models.get(place.model, (0, 0))
        return self._sites.get((place.model, place.site), (0, 0))

    @property
    def largest(self) -> int:
        """Positions of the largest."""
        return max((rows * columns for rows, columns in (*self._models.values(), *self._sites.values())), default=256)


def heat_of(image: dict[str, Any], largest: float, place: Place, grids: Grids, views: Views) -> Heat | None:
    """All values over the image where they are stored; else the one patch that is known to have the largest."""
    box = views.box(place.model, image["stage"], image["image_id"])
    if stored := stored_map(image, largest, box):
        return stored
    rows, columns = grids.of(place)
    if not 0 <= image["token"] < rows * columns:
        return None
    values = [0.0] * (rows * columns)
    values[image["token"]] = max(image["value"], 0.0)
    return Heat(values, rows, columns, largest, box)


def stored_map(image: dict[str, Any], largest: float, box: Box) -> Heat | None:
    """The map of a row of sae_top_images, if it has one; top_images have none."""
    if not (image.get("map") and image["grid_h"] and image["grid_w"]):
        return None
    return Heat(image["map"], image["grid_h"], image["grid_w"], largest, box)
