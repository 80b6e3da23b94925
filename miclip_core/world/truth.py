"""What an image shows as plain table columns, and what each patch of it shows as class numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from miclip_core.world.captions import full_claims, sentences
from miclip_core.world.render import LABEL_BACKGROUND, LABEL_TEXT
from miclip_core.world.scene import BACKGROUNDS, CONCEPTS, MAX_OBJECTS, OBJECT_FIELDS, RADII, WORDS, Scenes


def truth_rows(scenes: Scenes) -> list[dict[str, Any]]:
    """One flat row per image: caption, label ("red circle" or "no object"), the first object's fields under their own
    names, further objects as `shape_2` ... `position_4`, then background, word and watermark; None where nothing is there.
    """
    captions = sentences(full_claims(scenes))
    return [{"caption": caption, **_row(scenes, b)} for b, caption in enumerate(captions)]


def _row(scenes: Scenes, b: int) -> dict[str, Any]:
    count = int(scenes.count[b])
    row: dict[str, Any] = {"label": "no object", "objects": count}
    for k in range(MAX_OBJECTS):
        ending = f"_{k + 1}" if k else ""
        for field in OBJECT_FIELDS:
            value = int(getattr(scenes, field)[b, k])
            row[field + ending] = CONCEPTS[field][value] if k < count else None
        row["x" + ending] = int(scenes.x[b, k]) if k < count else None
        row["y" + ending] = int(scenes.y[b, k]) if k < count else None
        row["radius" + ending] = RADII[scenes.size[b, k]][scenes.radius[b, k]] if k < count else None
    if count:
        row["label"] = f"{row['colour']} {row['shape']}"
    row["background"] = BACKGROUNDS[scenes.background[b]]
    row["word"] = WORDS[scenes.word[b]] if scenes.word[b] >= 0 else None
    row["watermark"] = bool(scenes.watermark[b])
    return row


def patch_classes(
    scenes: Scenes, labels: np.ndarray, patch: int, object_pixels: int = 6, background_pixels: int | None = None
) -> dict[str, np.ndarray]:
    """The class of every patch in each category as (B, P) int64 in row-major patch order, -1 where it shows none.

    A patch shows the object that covers most of it, from `object_pixels` on; the background from `background_pixels`
    on (default: all of the patch); and a word as an object does.
    """
    batch, side = labels.shape[0], labels.shape[1] // patch
    pixels = labels.reshape(batch, side, patch, side, patch).transpose(0, 1, 3, 2, 4).reshape(batch, side * side, -1)
    area = np.stack([(pixels == k + 1).sum(-1) for k in range(MAX_OBJECTS)], -1)
    winner, shown = area.argmax(-1), area.max(-1) >= object_pixels
    rows = np.arange(batch)[:, None]
    classes = {field: np.where(shown, getattr(scenes, field)[rows, winner], -1) for field in OBJECT_FIELDS[:-1]}
    clean = (pixels == LABEL_BACKGROUND).sum(-1) >= (patch * patch if background_pixels is None else background_pixels)
    classes["background"] = np.where(clean, scenes.background[:, None], -1)
    reads = (pixels == LABEL_TEXT).sum(-1) >= object_pixels
    classes["word"] = np.where(reads, scenes.word[:, None], -1)
    return classes
