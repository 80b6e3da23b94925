"""Image bytes to 8-bit RGB pixels by stated rules, or the reason why these bytes are not used.

| what the bytes are                          | what becomes of them                                                    |
|---------------------------------------------|-------------------------------------------------------------------------|
| no bytes                                    | refused: `empty`                                                        |
| none of FORMATS                             | refused: `not_an_image`                                                 |
| cut off or broken inside                    | refused: `truncated`; half a picture is never used                      |
| more than MAX_PIXELS, as its header says    | refused: `too_large`, before any pixel is unpacked                      |
| floating-point pixels, or 32-bit integers outside 0..65535 | refused: `unsupported`; nothing says what white is       |
| 8-bit grey, 1-bit, YCbCr, LAB               | RGB by Pillow                                                           |
| CMYK, YCCK                                  | RGB by Pillow (no colour profile; Adobe's inverted inks are understood) |
| 16-bit grey                                 | divided by 257 and rounded: 65535 is 255                                |
| 16-bit colour                               | the upper eight bits of each channel, as Pillow reads it                |
| palette                                     | its colours                                                             |
| alpha, or a transparent colour              | laid over white, as a page shows it                                     |
| animated, or several pages                  | the first frame                                                         |
| EXIF orientation, mirrored ones too         | applied for `upright`, ignored for `as_stored`; TIFF's own is always applied |
| embedded colour profile                     | ignored, as the models' own transforms do                               |
"""

from __future__ import annotations

import io
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from schemas.errors import ImageUndecodable

Orientation = Literal["upright", "as_stored"]

RULES_VERSION = 1  # raise it when the table above changes: what was computed from the pixels is then computed anew
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif"),
    *(".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
MAX_PIXELS = 89_478_485  # where Pillow starts to warn of a decompression bomb; here it is an error
THUMBNAIL_SIDE = 64

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_TO_EIGHT_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112


class Description(NamedTuple):
    """Facts of one decodable image: size in pixels after orientation, format and mode as stored, a JPEG thumbnail."""

    width: int
    height: int
    format: str
    mode: str
    thumbnail: bytes


def decode(data: bytes, orientation: Orientation = "upright") -> Image.Image:
    """The pixels of an encoded image as an RGB image, by the rules in this module's table.

    May be called from several threads. Memory is bounded by MAX_PIXELS: at most about 12 bytes for each.

    Raises:
        ImageUndecodable: with the reason.
    """
    return _decode(data, orientation)[0]


def describe(data: bytes, orientation: Orientation = "upright") -> Description:
    """Decode an image once, to the end, and say what it is.

    Raises:
        ImageUndecodable: with the reason.
    """
    image, stored_format, stored_mode = _decode(data, orientation)
    size = image.size
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return Description(*size, stored_format, stored_mode, out.getvalue())


def _decode(data: bytes, orientation: Orientation) -> tuple[Image.Image, str, str]:
    """RGB image, stored format, stored mode."""
    if not data:
        raise ImageUndecodable("empty", "0 bytes")
    opened = False
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            opened = True
            stored_format, stored_mode = str(image.format), image.mode
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(f"{image.width} x {image.height} pixels")
            image.load()  # verify() would not notice a cut file
            # Asked for after loading: Pillow has then turned a TIFF already and forgotten its tag.
            turn = _UPRIGHT.get(_exif_orientation(image)) if orientation == "upright" else None
            rgb = _to_rgb(image)
            return rgb if turn is None else rgb.transpose(turn), stored_format, stored_mode
    except (ImageUndecodable, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("by its header") from error
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ... for bytes they cannot follow.
        if opened or data.startswith(_BEGINNINGS) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
            detail = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else str(error)
            raise ImageUndecodable("truncated", f"{len(data)} bytes: {detail}") from error
        raise ImageUndecodable("not_an_image", f"begins with {data[:12]!r}, as none of {', '.join(FORMATS)}") from error


def _too_large(found: str) -> ImageUndecodable:
    return ImageUndecodable("too_large", f"{found}; at most {MAX_PIXELS} pixels are accepted")


def _exif_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged metadata says nothing about the pixels, which are whole
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        return _from_wide_grey(image)
    if image.mode == "F":
        raise ImageUndecodable("unsupported", "floating-point pixels; store 8 or 16 bits per channel")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        del image.info["transparency"]  # a 16-bit colour, which the 8 bits that were read cannot be compared with
    if image.has_transparency_data:
        above = image.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(above, mask=above.getchannel("A"))
        return page
    return image.convert("RGB")


def _from_wide_grey(image: Image.Image) -> Image.Image:
    grey = np.asarray(image)
    if image.mode == "I" and (grey.min() < 0 or grey.max() > 65535):
        found = f"32-bit integers from {grey.min()} to {grey.max()}"
        raise ImageUndecodable("unsupported", f"{found}; only 0..65535 has a known white")
    return Image.fromarray(_TO_EIGHT_BITS[grey]).convert("RGB")
