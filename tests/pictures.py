"""Encoded images for tests, all made by code: plain ones, damaged ones and every exotic kind that has a rule."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """The file that Pillow writes for an image or pixel array."""
    out = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(out, kind, **options)
    return out.getvalue()


def noise(seed: int, width: int = 20, height: int = 16) -> np.ndarray:
    """Random pixels (height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def jpeg(seed: int) -> bytes:
    """A small valid JPEG; equal seeds give equal bytes."""
    return encode(noise(seed), "JPEG", quality=90)


def half_a_jpeg(seed: int = 0) -> bytes:
    """A JPEG whose second half is missing."""
    whole = encode(noise(seed, 64, 48), "JPEG")
    return whole[: len(whole) // 2]


def png(
    width: int, height: int, rows: bytes, depth: int, colour: int, extra: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """A PNG written by hand: `rows` are the filtered bytes before compression."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def bomb() -> bytes:
    """A valid 1-bit PNG of 14,000 x 14,000 = 196 million pixels in some 25 KB."""
    return png(14_000, 14_000, bytes((1 + 14_000 // 8) * 14_000), 1, 0)


def with_orientation(tag: int) -> bytes:
    """A lossless 3 x 2 image, red at its stored top left corner and white elsewhere, with an EXIF orientation."""
    pixels = np.full((2, 3, 3), 255, np.uint8)
    pixels[0, 0] = RED
    exif = Image.Exif()
    exif[0x0112] = tag
    return encode(pixels, "PNG", exif=exif)


def fill_folder(root: Path, files: dict[str, bytes]) -> Path:
    """Write files by their path below `root`."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root
