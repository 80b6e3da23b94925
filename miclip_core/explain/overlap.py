"""How well what a text finds in an image covers where a feature is active: overlap of masks."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from miclip_core.explain.render import resize_nearest

SIDE = 224
"""Pixels per side of the masks that are compared."""
SegMode = Literal["first", "union"]


class Overlap(NamedTuple):
    """Of two masks: intersection over union, over what the text finds (precision), over the feature's (recall); fp64 [*].

    Each is 0 where what it is a share of is empty.
    """

    iou: Tensor
    precision: Tensor
    recall: Tensor


def join_masks(masks_QIJ: Tensor, mode: SegMode) -> Tensor:
    """One mask bool [h, w] of the Q >= 0 that a segmenter found, in its order: the first, or all together; none are empty."""
    masks_QIJ = masks_QIJ.bool()
    return masks_QIJ[:1].any(0) if mode == "first" else masks_QIJ.any(0)


def measure_overlap(map_IJ: Tensor, mask_IJ: Tensor) -> Overlap:
    """Overlap of where a feature is active with what a text finds.

    map: float [gh, gw], one activation per patch, active above 0. mask: bool [h, w] of the same image. Both may have the
    same dimensions in front. Thresholded first and then brought to 224 x 224 by nearest neighbours, so that no activation
    is too small to count.

    Raises:
        ValueError: not one map per mask.
    """
    if map_IJ.ndim < 2 or map_IJ.shape[:-2] != mask_IJ.shape[:-2]:
        raise ValueError(
            f"found maps {tuple(map_IJ.shape)} and masks {tuple(mask_IJ.shape)}; expected [..., gh, gw] and [..., h, w]"
        )
    active, found = (resize_nearest(mask, (SIDE, SIDE)).flatten(-2) for mask in (map_IJ > 0, mask_IJ.bool()))
    both, either = (active & found).sum(-1), (active | found).sum(-1)
    iou, precision, recall = (both.double() / of.clamp(min=1) for of in (either, found.sum(-1), active.sum(-1)))
    return Overlap(iou, precision, recall)
