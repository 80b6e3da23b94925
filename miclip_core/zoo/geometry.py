"""Image geometry (resize, crop) and normalisation, apart from each other; Pillow does the resizing."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from schemas.models import Geometry

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


def to_pixels(image: Image.Image, geometry: Geometry) -> Tensor:
    """Resize and crop (or pad) one image: uint8 [3, h, w] with (h, w) = crop_hw. Other modes are converted to RGB."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    height, width = _resized(image.height, image.width, geometry)
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), _FILTERS[geometry.interpolation])
    pixels = np.asarray(_centred(image, geometry))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def square_view(image: Image.Image, geometry: Geometry) -> Tensor:
    """The central square of an image at this model's input size: uint8 [3, h, w].

    The field of view is the same for every model, as comparisons of positions across models need.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return to_pixels(square, geometry.model_copy(update={"resize": "squash", "resize_hw": geometry.crop_hw}))


def normalise(pixels: Tensor, geometry: Geometry) -> Tensor:
    """uint8 [..., 3, h, w] -> fp32 (x / 255 - mean) / std."""
    shape = (3, 1, 1)
    mean = torch.tensor(geometry.mean, device=pixels.device).view(shape)
    std = torch.tensor(geometry.std, device=pixels.device).view(shape)
    return (pixels.float() / 255 - mean) / std


def _resized(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    to_h, to_w = geometry.resize_hw
    if geometry.resize == "squash":
        return to_h, to_w
    ratios = (height / to_h, width / to_w)
    if geometry.resize == "longest":
        ratio = max(ratios)
        return round(height / ratio), round(width / ratio)
    if to_h != to_w:
        ratio = min(ratios)
        return round(height / ratio), round(width / ratio)
    # The longer side is cut to an integer, not rounded: what torchvision's Resize does.
    return (to_h, int(to_h * width / height)) if height <= width else (int(to_h * height / width), to_h)


def _centred(image: Image.Image, geometry: Geometry) -> Image.Image:
    height, width = geometry.crop_hw
    if (image.height, image.width) == (height, width):
        return image
    if image.height < height or image.width < width:
        canvas = Image.new("RGB", (max(width, image.width), max(height, image.height)), (geometry.fill,) * 3)
        canvas.paste(image, (max(width - image.width, 0) // 2, max(height - image.height, 0) // 2))
        image = canvas
    top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))
