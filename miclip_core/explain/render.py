"""Images that show where a feature is active: the rest blacked out, or a heatmap laid over them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

IMAGE_SHARE = 0.65
"""Of a blend with a heatmap; the colours have the rest."""
_VIRIDIS = (
    "44015446085c471063481769481d6f482475472a7a46307e453781433d844142873f48893d4e8a3a538b38598c355e8d33638d31688e2e6d"
    "8e2c718e2a768e297b8e27808e25848e23898e218e8d20928c1f978b1e9c891fa18821a58524aa8328ae802eb37c35b7793dbc7446c06f50"
    "c46a5ac86465cb5e70cf577cd25089d54895d840a2da37b0dd2fbddf26cae11fd8e219e5e419f1e51dfde725"
)  # every fifth of its 256 colours; those between them are at most one level from a straight line


def mask_image(pixels_CIJ: Tensor, map_IJ: Tensor) -> Tensor:
    """An image uint8 [3, h, w] where only patches with a positive activation are left and all others are black.

    pixels: uint8 [3, h, w] as the tower sees them, that is after its resizing and cropping. map: float [gh, gw], one
    activation per patch. Both may have the same dimensions in front, for many images at once.

    Raises:
        ValueError: not one map per image.
    """
    _check(pixels_CIJ, map_IJ)
    shown = resize_nearest(map_IJ > 0, (pixels_CIJ.shape[-2], pixels_CIJ.shape[-1]))
    return pixels_CIJ * shown.unsqueeze(-3)


def hides_nothing(map_IJ: Tensor) -> bool:
    """Whether `mask_image` leaves the whole image as it is, because every patch is active."""
    return bool((map_IJ > 0).all())


def heat_image(pixels_CIJ: Tensor, map_IJ: Tensor) -> Tensor:
    """An image uint8 [3, h, w] with its activations laid over it in the colours of viridis, violet to yellow.

    The map is interpolated bicubically and stretched to [0, 1], as the image itself is before they are blended 0.65 to
    0.35; a map without any spread counts as low everywhere, an image without any stays as it is. Arguments and errors
    as of `mask_image`.
    """
    _check(pixels_CIJ, map_IJ)
    size = pixels_CIJ.shape[-2:]
    maps = map_IJ.float().reshape(-1, 1, *map_IJ.shape[-2:])
    heat = interpolate(maps, size=size, mode="bicubic", align_corners=False).view(*map_IJ.shape[:-2], *size)
    image = pixels_CIJ.float() / 255
    blend = IMAGE_SHARE * _stretched(image, 3, image) + (1 - IMAGE_SHARE) * viridis(
        _stretched(heat, 2, torch.zeros_like(heat))
    )
    return (blend * 255).round().clamp(0, 255).to(torch.uint8)


def viridis(value: Tensor) -> Tensor:
    """The colours fp32 [*, 3, h, w], 0 to 1, of values [*, h, w] of 0 to 1 (Smith and van der Walt 2015, matplotlib)."""
    knots = torch.tensor(list(bytes.fromhex(_VIRIDIS)), dtype=torch.float32, device=value.device).view(-1, 3) / 255
    place = value.float().clamp(0, 1) * (len(knots) - 1)
    below = place.long().clamp(max=len(knots) - 2)
    return torch.lerp(knots[below], knots[below + 1], (place - below).unsqueeze(-1)).movedim(-1, -3)


def resize_nearest(map_IJ: Tensor, size: tuple[int, int]) -> Tensor:
    """A map [*, gh, gw] of any type at another size: each pixel takes the value of the cell that its corner lies in."""
    rows, columns = (
        torch.arange(wanted, device=map_IJ.device) * had // wanted
        for wanted, had in zip(size, map_IJ.shape[-2:], strict=True)
    )
    return map_IJ[..., rows[:, None], columns]


def _stretched(values: Tensor, dims: int, if_flat: Tensor) -> Tensor:
    """Values brought to [0, 1] over the last so many dimensions, or others where all of them are equal."""
    flat = values.flatten(-dims)
    low, high = (ends.view(*values.shape[:-dims], *[1] * dims) for ends in (flat.amin(-1), flat.amax(-1)))
    return torch.where(high > low, (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny), if_flat)


def _check(pixels: Tensor, maps: Tensor) -> None:
    if pixels.dtype != torch.uint8 or pixels.shape[-3:-2] != (3,) or pixels.shape[:-3] != maps.shape[:-2]:
        raise ValueError(
            f"found {pixels.dtype} pixels of shape {tuple(pixels.shape)} with a map of shape {tuple(maps.shape)}; "
            "expected uint8 pixels [..., 3, h, w] and a map [..., gh, gw] for each"
        )
