"""The images that drive each feature most, and where in them it fires."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from miclip_core.sae.features.codes import FeatureCodes, ImageCodes, order_by_value


@dataclass(frozen=True)
class TopImages:
    """At most k images per feature, strongest first; only images where the feature is active (above zero) at all.

    feature int32 (from the codes' first), rank int32, entry int64: which of the ImageCodes this is.
    """

    feature: np.ndarray
    rank: np.ndarray
    entry: np.ndarray


def top_images(images: ImageCodes, strength: np.ndarray, id_order: np.ndarray, k: int) -> TopImages:
    """The k images with the highest strength; of equal ones the image with the lower id.

    strength float32 [entries]: what the entries of `images` are compared by, such as their largest codes.
    id_order int [images]: place of each image when they are sorted by id.
    """
    active = np.flatnonzero(images.largest > 0)
    feature, value = images.feature[active], strength[active]
    offsets = np.searchsorted(feature, np.arange(images.width + 1))
    ascending = value[order_by_value(feature, value)]
    least = ascending[np.maximum(offsets[1:] - k, offsets[:-1])[feature]] if len(value) else value
    active = active[value >= least]  # the k largest and what ties with the last of them
    feature, value = images.feature[active], strength[active]
    order = np.lexsort((id_order[images.image[active]], -value, feature))
    feature = feature[order]
    rank = np.arange(len(feature)) - np.searchsorted(feature, feature)
    kept = rank < k
    return TopImages(feature[kept], rank[kept].astype(np.int32), active[order][kept])


def code_maps(codes: FeatureCodes, images: ImageCodes, top: TopImages, positions: range) -> np.ndarray:
    """Codes of each top image at tokens `positions`, zero where there is none: float32 [rows, positions]."""
    out = np.zeros((len(top.entry), len(positions)), np.float32)
    begin, end = images.start[top.entry], images.start[top.entry + 1]
    rows = np.repeat(np.arange(len(top.entry)), end - begin)
    entries = np.repeat(begin - np.concatenate([[0], np.cumsum(end - begin)[:-1]]), end - begin) + np.arange(len(rows))
    column = codes.token[entries] - positions.start
    inside = (column >= 0) & (column < len(positions))
    out[rows[inside], column[inside]] = codes.value[entries[inside]]
    return out
