"""Rows of the table of attention maps: what is measured of each map, and against the patches that show the concept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jobs.described import about
from jobs.protocol import ImageBytes, Part
from jobs.rows import make_batch, make_vectors
from miclip_core.align.attention_maps import entropy, mass_inside, points_inside
from schemas.plans import Plan


class Map(NamedTuple):
    """One map of an image: of the features of a concept, or the model's own beside it where there are none of these.

    saliency float32 [h, w] on the CPU; mask: patches that show the concept, bool [h, w], None where that is not known.
    """

    image: ImageBytes
    concept: int
    shows: str
    units: tuple[int, ...]
    saliency_IJ: Tensor
    mask_IJ: Tensor | None


def make_part(plan: Plan, maps: Sequence[Map]) -> Part:
    """Rows of attention_maps, in the order of the maps; at least one."""
    params: Any = plan.stage.params
    saliency_BIJ = torch.stack([m.saliency_IJ for m in maps])
    rows, columns = saliency_BIJ.shape[1:]
    found = {
        **about(plan.stage),
        "image_id": [m.image.image_id for m in maps],
        "image_index": [m.image.image_index for m in maps],
        "uri": pa.array([m.image.uri for m in maps], pa.string()),
        "concept_id": [m.concept for m in maps],
        "concept": [params["concepts"][m.concept] for m in maps],
        "shows": [m.shows for m in maps],
        "layer": params["layer"],
        "units": [list(m.units) for m in maps],
        "grid_h": rows,
        "grid_w": columns,
        "saliency": make_vectors(saliency_BIJ.flatten(1).numpy()),
        "entropy": entropy(saliency_BIJ).numpy(),
        **_against_truth(saliency_BIJ, [m.mask_IJ for m in maps]),
    }
    return Part(plan.digest, "attention_maps", make_batch("attention_maps", found))


def _against_truth(saliency_BIJ: Tensor, masks: Sequence[Tensor | None]) -> dict[str, pa.Array]:
    unknown = np.array([mask is None for mask in masks])
    masks_BIJ = torch.stack([torch.zeros_like(saliency_BIJ[0], dtype=torch.bool) if m is None else m for m in masks])
    values = {
        "truth_mass": mass_inside(saliency_BIJ, masks_BIJ),
        "truth_area": masks_BIJ.float().mean((1, 2)),
        "is_hit": points_inside(saliency_BIJ, masks_BIJ),
    }
    return {name: pa.array(value.numpy(), mask=unknown) for name, value in values.items()}
