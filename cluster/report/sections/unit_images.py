"""The images that drive units most, of neurons and of features alike, with what is known of where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from cluster.report.data import ReportData
from cluster.report.pictures import Box
from cluster.report.sections.places import Place
from cluster.report.tiles import Heat, Views

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


def load_grids(data: ReportData) -> dict[str, tuple[int, int]]:
    """Rows and columns of patches of the models that have them."""
    rows = data.table("models", ["model", "grid_h", "grid_w"]).to_pylist()
    return {row["model"]: (row["grid_h"], row["grid_w"]) for row in rows if row["grid_h"] and row["grid_w"]}


def heat_of(
    image: dict[str, Any], largest: float, place: Place, grids: dict[str, tuple[int, int]], views: Views
) -> Heat | None:
    """All values over the image where they are stored; else the one patch that is known to have the largest."""
    box = views.box(place.model, image["stage"], image["image_id"])
    if stored := stored_map(image, largest, box):
        return stored
    rows, columns = grids.get(place.model, (0, 0))
    if not place.site.endswith("@patch") or not 0 <= image["token"] < rows * columns:
        return None
    values = [0.0] * (rows * columns)
    values[image["token"]] = max(image["value"], 0.0)
    return Heat(values, rows, columns, largest, box)


def stored_map(image: dict[str, Any], largest: float, box: Box) -> Heat | None:
    """The map of a row of sae_top_images, if it has one; top_images have none."""
    if not (image.get("map") and image["grid_h"] and image["grid_w"]):
        return None
    return Heat(image["map"], image["grid_h"], image["grid_w"], largest, box)
