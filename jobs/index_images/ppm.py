"""Pixels as bytes that no compression library decides, for images that are made where they are read."""

from __future__ import annotations

import numpy as np


def encode_ppm(image: np.ndarray) -> bytes:
    """An RGB image (h, w, 3) uint8 as a binary PPM file."""
    return _header(*image.shape[:2]) + image.tobytes()


def ppm_size(height: int, width: int) -> int:
    """Bytes of such a file."""
    return len(_header(height, width)) + 3 * height * width


def _header(height: int, width: int) -> bytes:
    return f"P6\n{width} {height}\n255\n".encode()
