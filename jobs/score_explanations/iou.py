"""How well texts find, in top images of their features, where these are active."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jobs.protocol import Part
from jobs.score_explanations.cost import MASKS_KEPT
from jobs.score_explanations.recent import Recent
from jobs.score_explanations.task import Rows, Task, Text, explanation
from jobs.text_driven import IndexSegmenter
from miclip_core.explain.overlap import SIDE, join_masks, measure_overlap
from miclip_core.explain.render import resize_nearest
from schemas.plans import Plan


class Found(NamedTuple):
    """What a segmenter found for a text in an image: one mask, packed, and of how many it was made."""

    bits: np.ndarray
    masks: int

    @property
    def mask_IJ(self) -> Tensor:
        """bool [224, 224]."""
        return torch.from_numpy(np.unpackbits(self.bits, count=SIDE * SIDE).reshape(SIDE, SIDE).astype(bool))


def results(task: Task) -> Iterator[Part]:
    """Rows of explanation_iou; every text is looked for once in every image, whoever says it of whichever feature."""
    texts_of: dict[int, list[tuple[Plan, Text]]] = {}
    for plan, text in task.texts_of_each():
        texts_of.setdefault(text.feature, []).append((plan, text))
    shown_in = task.top_images(texts_of)
    segmenter, seen = _segmenter(task), _seen(task)
    rows = Rows()
    for image, pixels_CIJ in task.pixels(shown_in) if shown_in else ():
        for shown in shown_in[image.image_index]:
            for plan, text in texts_of[shown.feature]:
                key = (image.image_index, text.text)
                found = seen.get(key) or seen.put(key, _find(task, segmenter, pixels_CIJ, image.uri, text.text))
                overlap = measure_overlap(shown.top.map_IJ, found.mask_IJ)
                row = {name: float(value) for name, value in overlap._asdict().items()}
                where = {"image_id": image.image_id, "image_index": image.image_index, "n_masks": found.masks}
                place = (text.feature, text.sequence, shown.rank)
                rows.add(plan, place, {**explanation(plan, text), **where, **row})
    yield from rows.parts(task.plans, "explanation_iou")


def _find(task: Task, segmenter: IndexSegmenter, pixels_CIJ: Tensor, uri: str, text: str) -> Found:
    masks_QIJ = segmenter.masks(pixels_CIJ, uri, text)
    mask_IJ = resize_nearest(join_masks(masks_QIJ, task.params["masks_scored"]), (SIDE, SIDE))
    return Found(np.packbits(mask_IJ.numpy()), len(masks_QIJ))


def _segmenter(task: Task) -> IndexSegmenter:
    params, effort = task.params, task.effort
    make = partial(IndexSegmenter, task.inputs, params["segmenter"], effort["folder"], task.device)
    segmenter: IndexSegmenter = task.hold("segmenter", make)
    return segmenter


def _seen(task: Task) -> Recent[tuple[int, str], Found]:
    seen: Recent[tuple[int, str], Found] = task.hold("masks", lambda: Recent(MASKS_KEPT))
    return seen
