"""How near texts are, in the space of a CLIP, to the parts of top images where their features are active."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from jobs.activations import Forward
from jobs.models import notes_of_cut, open_model
from jobs.protocol import Part
from jobs.score_explanations.task import Rows, Shown, Task, Text, explanation
from miclip_core.explain.render import mask_image
from miclip_core.zoo.geometry import to_pixels
from miclip_core.zoo.model import VisionModel
from schemas.base import canonical_json
from schemas.plans import Plan, load_json


class Masked(NamedTuple):
    """A top image of which only what its feature is active on is left, as the CLIP sees it."""

    shown: Shown
    pixels_CIJ: Tensor


def results(task: Task) -> Iterator[Part]:
    """Rows of explanation_clip; every masked image and every text is embedded once."""
    texts_of: dict[int, list[tuple[Plan, Text]]] = {}
    for plan, text in task.texts_of_each():
        texts_of.setdefault(text.feature, []).append((plan, text))
    if not texts_of:
        return
    forward: Forward = load_json(Forward, canonical_json(task.effort["clip"]))
    clip: VisionModel = task.hold("clip", lambda: open_model(forward, task.inputs, task.device, []))
    size = int(str(forward.effort["batch_size"]))
    texts = sorted({text.text for some in texts_of.values() for _, text in some})
    embedded, cut = dict(zip(texts, _embed_texts(clip, texts, size), strict=True)), set(_cut(clip, texts))
    task.notes.extend(notes_of_cut(clip, texts))
    rows = Rows()
    for shown, image_E in _embed_images(clip, _masked(task, texts_of, clip), size):
        for plan, text in texts_of[shown.feature]:
            row = {
                "image_id": shown.top.image_id,
                "image_index": shown.top.image_index,
                "clip": task.params["clip"],
                "cosine": float(image_E.double() @ embedded[text.text].double()),
                "is_truncated": text.text in cut,
            }
            rows.add(plan, (text.feature, text.sequence, shown.rank), {**explanation(plan, text), **row})
    yield from rows.parts(task.plans, "explanation_clip")


def _masked(task: Task, features: dict[int, list[tuple[Plan, Text]]], clip: VisionModel) -> Iterator[Masked]:
    """In the order of the index, then of features."""
    geometry = clip.facts.geometry
    if task.params["clip_view"] == "whole":
        geometry = geometry.model_copy(update={"resize": "squash", "resize_hw": geometry.crop_hw})
    shown_in = task.top_images(features)
    for image, pixels_CIJ in task.pixels(shown_in) if shown_in else ():
        for shown in shown_in[image.image_index]:
            left_CIJ = mask_image(pixels_CIJ, shown.top.map_IJ)
            yield Masked(shown, to_pixels(Image.fromarray(left_CIJ.permute(1, 2, 0).numpy()), geometry))


def _embed_images(clip: VisionModel, masked: Iterator[Masked], size: int) -> Iterator[tuple[Shown, Tensor]]:
    """Unit embeddings float32 [E]; always so many images at once, so that none depends on how work is cut."""
    batch: list[Masked] = []
    for one in masked:
        batch.append(one)
        if len(batch) == size:
            yield from _embed_batch(clip, batch, size)
            batch = []
    if batch:
        yield from _embed_batch(clip, batch, size)


def _embed_batch(clip: VisionModel, batch: Sequence[Masked], size: int) -> Iterator[tuple[Shown, Tensor]]:
    pixels = torch.stack([one.pixels_CIJ for one in batch])
    padded = torch.cat([pixels, pixels[-1:].expand(size - len(batch), -1, -1, -1)])
    found = normalize(clip.embed_images(clip.normalise(padded)).float().cpu(), dim=-1)
    yield from zip((one.shown for one in batch), found)


def _embed_texts(clip: VisionModel, texts: Sequence[str], size: int) -> Iterator[Tensor]:
    """Unit embeddings float32 [E] of each, so many at once as said above."""
    for first in range(0, len(texts), size):
        some = [*texts[first : first + size]]
        found = normalize(clip.embed_text(some + some[-1:] * (size - len(some))).float().cpu(), dim=-1)
        yield from found[: len(some)]


def _cut(clip: VisionModel, texts: Sequence[str]) -> list[str]:
    """Texts that the CLIP does not see to their end."""
    return clip.text.cut(texts) if clip.text is not None else []
