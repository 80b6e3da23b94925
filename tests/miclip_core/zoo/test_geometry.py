"""Resizing, cropping and normalising equal open_clip's own evaluation transforms, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from miclip_core.torchvision_shim import ensure_torchvision
from miclip_core.zoo.geometry import normalise, to_pixels
from schemas.models import Geometry

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.mark.parametrize("size", [(37, 64), (64, 37), (20, 20), (31, 32), (200, 101)])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_geometry_equals_open_clip(size: tuple[int, int], resize: str, interpolation: str) -> None:
    ensure_torchvision()
    from open_clip.transform import PreprocessCfg, image_transform_v2

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    cfg = PreprocessCfg(size=32, mean=MEAN, std=STD, interpolation=interpolation, resize_mode=resize, fill_color=7)
    theirs = image_transform_v2(cfg, is_train=False)(image)
    ours = Geometry(
        resize=resize, resize_hw=(32, 32), crop_hw=(32, 32), interpolation=interpolation, mean=MEAN, std=STD, fill=7
    )  # type: ignore[arg-type]
    assert torch.allclose(normalise(to_pixels(image, ours), ours), theirs, atol=1e-6)


def test_crop_smaller_than_the_resized_image_is_centred() -> None:
    image = Image.fromarray(np.arange(10 * 10 * 3, dtype=np.uint8).reshape(10, 10, 3))
    geometry = Geometry(
        resize="shortest", resize_hw=(10, 10), crop_hw=(4, 6), interpolation="bilinear", mean=MEAN, std=STD
    )
    assert torch.equal(
        to_pixels(image, geometry).permute(1, 2, 0), torch.from_numpy(np.asarray(image)[3:7, 2:8].copy())
    )
