"""The pre-rasterised object masks that the renderer blends: how they are made, and the shipped bytes, checked by hash."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from miclip_core.world.scene import RADII, ROTATIONS, SHAPES

WINDOW = 32  # pixels on a side of one mask, its centre between pixels 15 and 16
PATH = Path(__file__).parent / "data" / "atlas.npz"
SHA256 = "a93cd21b2139da9939453dd55466f5dae00326a0adae7a55aa2bdf2c3b3a39df"
_SUBPIXELS = 8

# Each shape as a predicate on (u, v): right and down, in units of the radius, inside the unit disc.
INSIDE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda u, v: np.hypot(u, v) <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.78,
    "triangle": lambda u, v: (v <= 0.6) & (abs(u) <= 0.55 * (v + 1)),
    "diamond": lambda u, v: abs(u) / 0.68 + abs(v) <= 1,
    "star": lambda u, v: _in_star(u, v),
    "cross": lambda u, v: np.maximum(np.minimum(abs(u), abs(v)) / 0.3, np.maximum(abs(u), abs(v)) / 0.95) <= 1,
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.78) <= 0.22,
    "heart": lambda u, v: _in_heart(1.25 * u, 0.1 - 1.25 * v),
}


def _in_star(u: np.ndarray, v: np.ndarray, inner: float = 0.42) -> np.ndarray:
    """Inside a five-pointed star: fold the plane onto one of its ten equal triangles, then test the outer edge."""
    fold = abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    x, y = np.hypot(u, v) * np.cos(fold), np.hypot(u, v) * np.sin(fold)
    corner_x, corner_y = inner * np.cos(np.pi / 5), inner * np.sin(np.pi / 5)
    return (corner_x - 1) * y - corner_y * (x - 1) >= 0


def _in_heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x * x + y * y - 1) ** 3 <= x * x * y**3


def build() -> np.ndarray:
    """Rasterise every mask: uint8 coverage 0..255 of shape (shapes, sizes, radii, rotations, 32, 32)."""
    axis = (np.arange(WINDOW * _SUBPIXELS) + 0.5) / _SUBPIXELS - WINDOW / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    atlas = np.zeros((len(SHAPES), len(RADII), len(RADII[0]), len(ROTATIONS), WINDOW, WINDOW), np.uint8)
    for shape, size, step, turn in np.ndindex(*atlas.shape[:4]):
        angle, radius = np.deg2rad(ROTATIONS[turn]), RADII[size][step]
        u = (np.cos(angle) * x + np.sin(angle) * y) / radius
        v = (np.cos(angle) * y - np.sin(angle) * x) / radius
        inside = INSIDE[SHAPES[shape]](u, v).reshape(WINDOW, _SUBPIXELS, WINDOW, _SUBPIXELS)
        hits = inside.sum((1, 3))
        atlas[shape, size, step, turn] = (hits * 255 + _SUBPIXELS**2 // 2) // _SUBPIXELS**2
    return atlas


@functools.cache
def load() -> np.ndarray:
    """The shipped masks, as `build` made them once; their bytes are the world's, since cos and hypot differ by machine.

    Raises ValueError when the file is not the one this code was written for.
    """
    with np.load(PATH) as stored:
        atlas = stored["atlas"]
    found = hashlib.sha256(atlas.tobytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{PATH}: masks hash to {found}, expected {SHA256}; reinstall the package")
    atlas.flags.writeable = False
    return atlas


def write(path: Path = PATH) -> str:
    """Rasterise the masks into `path` and return the hash to put into SHA256 (a change of it changes every image)."""
    atlas = build()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, atlas=atlas)
    return hashlib.sha256(atlas.tobytes()).hexdigest()
