"""From the image processor of a transformers checkpoint to a geometry, with the published one of its kind where absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from schemas.errors import GeometryMismatch
from schemas.models import Geometry

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_OPENAI = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
# What a processor does where its file is silent, by model type. `margin`: resized side over cropped side.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {**_OPENAI, "resample": 3, "margin": 1.0},
    "siglip": {**_HALF, "resample": 3, "margin": None},
    "vit": {**_HALF, "resample": 2, "margin": None},
    "vit_mae": {**_IMAGENET, "resample": 3, "margin": None},
    "dinov2": {**_IMAGENET, "resample": 3, "margin": 256 / 224},
    "resnet": {**_IMAGENET, "resample": 3, "margin": 256 / 224, "crop_pct": 224 / 256},
    "llava": {**_OPENAI, "resample": 3, "margin": 1.0},
    "gemma3": {**_HALF, "resample": 2, "margin": None},
    "internvl": {**_OPENAI, "resample": 3, "margin": None},
}

_SQUASHES = {"ViT": True, "Siglip": True, "CLIP": False, "Bit": False, "ConvNext": False,
             "Llava": False, "Gemma3": True, "GotOcr2": True}  # fmt: skip


def geometry_of(model_type: str, processor: Mapping[str, Any], own_hw: tuple[int, int], fixed: bool) -> Geometry:
    """Resize, crop and normalisation of a checkpoint.

    processor: the content of preprocessor_config.json, empty where there is none.
    own_hw: the image size of the model's configuration. fixed: the model takes no other; a processor that was written
        for another size is then scaled to it. Otherwise the processor decides.

    Raises:
        GeometryMismatch: the processor resamples in a way that has no equal here, or pads images.
    """
    kind = model_type.removesuffix("_model").removesuffix("_vision").removesuffix("_with_registers")
    said = {**_DEFAULTS[kind], **{key: value for key, value in processor.items() if value is not None}}
    if said.get("do_pad"):
        raise GeometryMismatch(
            "preprocessor_config.json: do_pad is true, so the model was trained on images padded to a square; known are "
            "resizing and cropping alone, which would show it other pixels. Set do_pad: false to take them all the same"
        )
    resize, resize_hw, crop_hw = _sizes(said, own_hw)
    if fixed and crop_hw != own_hw:
        resize_hw = (round(resize_hw[0] * own_hw[0] / crop_hw[0]), round(resize_hw[1] * own_hw[1] / crop_hw[1]))
        crop_hw = own_hw
    if said["resample"] not in _FILTERS:
        raise GeometryMismatch(
            f"preprocessor_config.json: resample {said['resample']!r} is none of "
            f"{', '.join(f'{number} ({name})' for number, name in _FILTERS.items())}"
        )
    mean, std = _normalisation(said)
    return Geometry(
        resize=resize,
        resize_hw=resize_hw,
        crop_hw=crop_hw,
        interpolation=_FILTERS[said["resample"]],  # type: ignore[arg-type]
        mean=mean,
        std=std,
    )


def _sizes(
    said: Mapping[str, Any], own_hw: tuple[int, int]
) -> tuple[Literal["shortest", "squash"], tuple[int, int], tuple[int, int]]:
    """How to resize, to what, and what is then cropped from the centre."""
    size, square = said.get("size"), _is_square(said)
    if isinstance(size, int):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    crop_hw = _pair(said.get("crop_size")) if said.get("do_center_crop", not square) else None
    if size is None:
        crop_hw = crop_hw or own_hw
        margin = 1.0 if square else said["margin"] or 1.0
        resize_hw = (round(crop_hw[0] * margin), round(crop_hw[1] * margin))
        return "squash" if square else "shortest", resize_hw, crop_hw
    if "shortest_edge" not in size:
        both = (int(size["height"]), int(size["width"]))
        return "squash", both, crop_hw or both
    side = int(size["shortest_edge"])
    if "crop_pct" in said and crop_hw is None:  # ConvNeXt's processor: below 384 `size` is that of the crop
        crop_hw = (side, side)
        if side >= 384:
            return "squash", crop_hw, crop_hw
        side = int(side / said["crop_pct"])
    return "shortest", (side, side), crop_hw or (side, side)


def _is_square(said: Mapping[str, Any]) -> bool:
    """Whether the processor squashes to a square where its file gives one number; its class says so, else the model."""
    name = str(said.get("image_processor_type") or said.get("feature_extractor_type") or "")
    known = [squashes for start, squashes in _SQUASHES.items() if name.startswith(start)]
    return known[0] if known else said["margin"] is None


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    return (int(size), int(size)) if isinstance(size, int) else (int(size["height"]), int(size["width"]))


def _normalisation(said: Mapping[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std for pixels in 0..1, whatever factor the processor rescales bytes by."""
    scale = 255 * said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 255.0
    normalises = said.get("do_normalize", True)
    mean = [value / scale for value in (said["image_mean"] if normalises else [0.0] * 3)]
    std = [value / scale for value in (said["image_std"] if normalises else [1.0] * 3)]
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
