"""Top images of features as a sae_features stage published them, with their maps, and their pixels as the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jobs.activations import Forward
from jobs.columns import as_ranges
from jobs.forward import read_pixels
from jobs.pixels import Problem
from jobs.protocol import Inputs
from schemas.models import Geometry

_COLUMNS = ("feature", "rank", "image_id", "image_index", "uri", "map", "grid_h", "grid_w")
READ_AT_ONCE = 16
"""Images that are decoded together."""


@dataclass(frozen=True, eq=False)
class TopImage:
    """One image of a feature: where it is, and the feature's code on each patch, fp32 [gh, gw], 0 where it is not active."""

    image_id: str
    image_index: int
    uri: str | None
    map_IJ: Tensor


def read_top_images(inputs: Inputs, stage: str, features: Sequence[int], first: int) -> dict[int, list[TopImage]]:
    """The images of rank 0 to first - 1 of ascending features, by rank; features without any are left out.

    stage: of kind sae_features, with table top_images over a site with a patch grid.
    """
    found: dict[int, dict[int, TopImage]] = {}
    for batch in inputs.table(stage, "sae_top_images", _COLUMNS, ("feature", as_ranges(list(features)))):
        for row in batch.filter(pa.array(batch["rank"].to_numpy() < first)).to_pylist():
            map_IJ = torch.from_numpy(np.array(row["map"], np.float32).reshape(row["grid_h"], row["grid_w"]))
            top = TopImage(row["image_id"], row["image_index"], row["uri"], map_IJ)
            found.setdefault(row["feature"], {})[row["rank"]] = top
    return {feature: [ranks[rank] for rank in sorted(ranks)] for feature, ranks in found.items()}


def read_views(
    inputs: Inputs, forward: Forward, geometry: Geometry, images: Sequence[int], threads: int
) -> tuple[dict[int, Tensor], list[Problem]]:
    """Images by their rows in the index of a forward pass, as a model with this geometry sees them: uint8 [3, h, w] each.

    Those that cannot be read any more are left out, and said to be problems.

    Raises:
        ImageChanged: on_changed of the pass is stop, and an image is not what was indexed.
    """
    views: dict[int, Tensor] = {}
    problems: list[Problem] = []
    ranges = as_ranges(sorted(set(images)))
    for batch in read_pixels(inputs, forward, geometry, ranges, threads, READ_AT_ONCE):
        problems += batch.problems
        views.update(
            zip((image.image_index for image in batch.images), batch.pixels)
        )  # what fills the batch is dropped
    return views, problems
