"""How maps are shown over images: which part of an image a model saw, and maps small enough to be sent."""

from __future__ import annotations

import numpy as np

from schemas.models import Geometry

Box = tuple[float, float, float, float]
"""Left, top, width and height, as fractions of an image; below 0 and above 1 where it is padded."""
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


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


def pool_map(values: np.ndarray, most: int) -> np.ndarray:
    """A map [rows, columns] with at most so many of either: means over cells of nearly equal size."""
    for axis in (0, 1):
        size = values.shape[axis]
        if size > most:
            edges = np.linspace(0, size, most + 1).round().astype(int)
            sums = np.add.reduceat(values, edges[:-1], axis=axis)
            shape = [-1 if a == axis else 1 for a in (0, 1)]
            values = sums / np.diff(edges).reshape(shape)
    return values


def map_bytes(values: np.ndarray, largest: float) -> bytes:
    """Values of any shape as bytes, row-major: 255 for the largest, 0 for negative ones."""
    scaled = np.asarray(values, dtype=np.float64) / (largest or 1.0) * 255
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8).tobytes()
