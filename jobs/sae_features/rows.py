"""Rows of the tables of features, as Arrow batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.protocol import Part
from jobs.rows import make_batch
from miclip_core.sae.features.codes import FeatureCodes, ImageCodes, means
from miclip_core.sae.features.top import TopImages, code_maps
from schemas.plans import Plan
from schemas.tables import TABLES

BATCH_ROWS = 1 << 16


class Images:
    """The images of all shards in the order of the index: their names, and where they are."""

    def __init__(self, image_index: np.ndarray, image_id: np.ndarray, uris: Sequence[str]) -> None:
        self.image_index = image_index
        self._ids = pa.array(image_id.tolist(), pa.string())
        self._uris = pa.array(uris, pa.string())
        self.id_order = np.empty(len(image_id), np.int64)
        self.id_order[np.argsort(image_id)] = np.arange(len(image_id))
        """Place of each when they are sorted by id."""

    def __len__(self) -> int:
        return len(self.image_index)

    def columns(self, place: np.ndarray) -> dict[str, Any]:
        """image_id and image_index of the images at these places."""
        return {"image_id": self._ids.take(pa.array(place)), "image_index": self.image_index[place]}

    def uris(self, place: np.ndarray) -> pa.Array:
        """Where they are."""
        return self._uris.take(pa.array(place))


def make_parts(plan: Plan, table: str, columns: Mapping[str, Any]) -> Iterator[Part]:
    """Columns as parts of bounded size; what is the same for all rows is filled in, and NaN in a column that may be null is null."""
    same = {"stage": plan.digest, "model": plan.stage.subject, "site": str(plan.stage.params["site"])}
    same["sae"] = f"sae:{plan.stage.inputs['sae']}"
    n = len(columns["feature"])
    for start in range(0, n, BATCH_ROWS):
        rows = slice(start, min(start + BATCH_ROWS, n))
        yield Part(plan.digest, table, make_batch(table, {**_cut(table, columns, rows), **same}))


def _cut(table: str, columns: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    return {
        column.name: _as_arrow(columns[column.name][rows], column.type, column.nullable)
        for column in TABLES[table].columns
        if column.name in columns
    }


def _as_arrow(values: Any, kind: pa.DataType, nullable: bool) -> pa.Array:
    if isinstance(values, pa.Array):
        return values.cast(kind)
    if not pa.types.is_list(kind):
        return pa.array(values, type=kind, from_pandas=nullable) if len(values) else pa.array([], kind)
    n, width = values.shape
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=kind.value_type)
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * width), flat, type=kind)


def code_parts(plan: Plan, codes: FeatureCodes, images: Images) -> Iterator[Part]:
    """Rows of sae_codes; names of images are looked up for one batch of them at a time."""
    feature = codes.feature
    for start in range(0, len(codes), BATCH_ROWS):
        rows = slice(start, start + BATCH_ROWS)
        columns = {
            "feature": codes.first + feature[rows],
            **images.columns(codes.image[rows]),
            "token": codes.token[rows],
            "value": codes.value[rows],
        }
        yield from make_parts(plan, "sae_codes", columns)


def top_parts(plan: Plan, codes: FeatureCodes, by_image: ImageCodes, top: TopImages, images: Images) -> Iterator[Part]:
    """Rows of sae_top_images."""
    params: Any = plan.stage.params
    place, n = by_image.image[top.entry], len(top.entry)
    columns: dict[str, Any] = {
        "feature": codes.first + top.feature,
        "rank": top.rank,
        **images.columns(place),
        "uri": images.uris(place),
        "value": by_image.largest[top.entry],
        "token": by_image.token[top.entry],
        "image_mean": means(by_image, params["positions"])[top.entry],
        "map": pa.nulls(n, TABLES["sae_top_images"].schema.field("map").type),
        "grid_h": pa.nulls(n, pa.int32()),
        "grid_w": pa.nulls(n, pa.int32()),
    }
    if params["grid"] is not None:
        height, width = params["grid"]
        patches = range(params["first_patch"], params["first_patch"] + height * width)
        columns["map"] = code_maps(codes, by_image, top, patches)
        columns["grid_h"], columns["grid_w"] = np.full(n, height, np.int32), np.full(n, width, np.int32)
    yield from make_parts(plan, "sae_top_images", columns)
