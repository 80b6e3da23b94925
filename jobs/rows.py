"""The rows that a batch of images gave at one site, rounded as they are stored, and as Arrow batches of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from jobs.protocol import ImageBytes
from miclip_core.zoo.stream import TappedBatch
from schemas.columns import VECTOR
from schemas.errors import NonFiniteActivation
from schemas.refs import Site
from schemas.tables import TABLES

ROUND_TO = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
ONE = (str, int, float, type(None))
"""What is one value of a column, and not the column."""


@dataclass(frozen=True)
class Rows:
    """What a batch gave at one site: values [B, R, W], positions [R] or [B, R], and the images of the B rows."""

    values: Tensor
    positions: np.ndarray
    images: Sequence[ImageBytes]

    def position_matrix(self) -> np.ndarray:
        """Positions [B, R]."""
        return np.broadcast_to(self.positions, (len(self.images), self.values.shape[1]))


class SetAside(NamedTuple):
    """Images that gave no rows at a site: in what way, and what a person can do about it."""

    images: list[ImageBytes]
    problem: str
    advice: str


def usable_rows(
    batch: TappedBatch, site: Site, images: Sequence[ImageBytes], to: str
) -> tuple[Rows | None, list[SetAside]]:
    """The rows of one site whose values are finite and stay so in the stored format, and the images of all others."""
    aside: list[SetAside] = []
    finite_B = batch.finite[str(site)]
    if not finite_B.all():
        aside.append(SetAside(pick(images, ~finite_B), f"{site} is NaN or infinite", "use dtype: fp32"))
    kept = pick(images, finite_B)
    if not kept:
        return None, aside
    values, positions = batch.rows(site)
    fits_B = fits(values, to)
    if not fits_B.all():
        problem = f"{site} reaches {values.abs().max().item():.6g}, which does not fit {to}"
        aside.append(SetAside(pick(kept, ~fits_B), problem, "set round_to: bf16 or fp32"))
        kept = pick(kept, fits_B)
        values = values[torch.from_numpy(fits_B).to(values.device)]
        positions = positions if positions.ndim == 1 else positions[fits_B]
    return (Rows(values, positions, kept) if kept else None), aside


def stop_for(aside: SetAside, model: str) -> NonFiniteActivation:
    """The error for images that may not be set aside."""
    first = aside.images[0]
    return NonFiniteActivation(
        f"{model} {aside.problem} for {len(aside.images)} images, first {first.image_id} ({first.uri}); {aside.advice}, "
        "take the image out, or set on_nonfinite: quarantine"
    )


def round_values(values: Tensor, to: str) -> Tensor:
    """Values rounded to a shorter format, as float32."""
    return values.to(ROUND_TO[to]).float()


def fits(values: Tensor, to: str) -> np.ndarray:
    """Which of the first axis stay finite in that format: bool [B]."""
    if to == "fp32":
        return np.ones(len(values), dtype=bool)
    return torch.isfinite(values.to(ROUND_TO[to])).flatten(1).all(1).cpu().numpy()


def pick(images: Sequence[ImageBytes], chosen_B: np.ndarray) -> list[ImageBytes]:
    """The images where the mask is true."""
    return [image for image, chosen in zip(images, chosen_B, strict=True) if chosen]


def make_vectors(values: np.ndarray) -> pa.Array:
    """A [n, W] float32 matrix as a column of n lists, without copying the numbers."""
    n, width = values.shape
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * width)
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.ListArray.from_arrays(offsets, flat, type=VECTOR)


def make_batch(table: str, columns: dict[str, Any]) -> pa.RecordBatch:
    """Columns in the order and types of a table; a plain string, number or None is repeated on every row."""
    schema = TABLES[table].schema
    n = next(len(c) for c in columns.values() if not isinstance(c, ONE))
    arrays = []
    for name, kind in zip(schema.names, schema.types):
        column = columns[name]
        if isinstance(column, ONE):
            arrays.append(pa.repeat(pa.scalar(column, kind), n))
        else:
            arrays.append(column if isinstance(column, pa.Array) else pa.array(column, type=kind))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def image_columns(images: Sequence[ImageBytes], repeat: int = 1) -> dict[str, Any]:
    """image_id and image_index, each `repeat` times."""
    ids = np.repeat(np.array([image.image_id for image in images]), repeat)
    return {"image_id": pa.array(ids.tolist()), "image_index": np.repeat([i.image_index for i in images], repeat)}
