"""Who puts the patches of a stage into words: the captions that its images came with, or a model that is shown them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor

from jobs.columns import as_ranges, read_index
from jobs.describe.task import Task
from jobs.files import open_planned
from jobs.forward import read_pixels
from jobs.models import DTYPES
from miclip_core.dissect.caption import AskedCaptions, Captioner, GivenCaptions, Patch
from miclip_core.dissect.patches import PatchList, crop, patch_box
from miclip_core.dissect.v_interp import caption_patches
from schemas.base import canonical_json
from schemas.models import Geometry
from schemas.plans import load_json

READ_IMAGES = 32
"""Images that are decoded together."""
_BLANK = Image.new("RGB", (1, 1))


def open_captioner(task: Task, patches: PatchList) -> Captioner:
    """What a stage's `captioner` names, for these patches; a model is opened once for all shards of a worker.

    Raises:
        WeightsMissing: its folder is not what it was when the run was planned. Further what `AskedCaptions` raises.
    """
    if task.params["captioner"] == "captions":
        images = patches.image.unique().tolist()
        found = (
            read_index(task.inputs, task.plan.stage.inputs["labels"], "caption", as_ranges(images)) if images else {}
        )
        return GivenCaptions({image: text for image, text in found.items() if text})

    def open_folder() -> Captioner:
        folder = open_planned(task.inputs, str(task.plan.effort["folder"]), str(task.params["captioner"]))
        return AskedCaptions(folder, dtype=DTYPES[str(task.forward.params["dtype"])], device=task.device)

    return task.hold(("captioner", task.params["captioner"]), open_folder)


def caption(task: Task, captioner: Captioner, patches: PatchList) -> list[str]:
    """One text for each of these patches; empty for those of an image that can no longer be read."""
    texts = [""] * len(patches.image)
    shown: list[int] = []
    cut = _given(patches, shown) if isinstance(captioner, GivenCaptions) else _cut(task, patches, shown)
    for place, text in zip(shown, caption_patches(captioner, cut, str(task.params.get("prompt", ""))), strict=True):
        texts[place] = text
    return texts


def _given(patches: PatchList, shown: list[int]) -> Iterator[Patch]:
    """Patches whose pixels nobody looks at."""
    for place, image in enumerate(patches.image.tolist()):
        shown.append(place)
        yield Patch(image, _BLANK)


def _cut(task: Task, patches: PatchList, shown: list[int]) -> Iterator[Patch]:
    """Patches with what is around them, cut from the view that the described model has of an image."""
    context = float(task.params["context"])
    for image, pixels_CIJ in _views(task, patches.image.unique().tolist()):
        first, stop = torch.searchsorted(patches.image, torch.tensor([image, image + 1])).tolist()
        for place in range(first, stop):
            size = (pixels_CIJ.shape[1], pixels_CIJ.shape[2])
            box = patch_box(int(patches.position[place]), task.grid, size, context)
            shown.append(place)
            yield Patch(image, crop(pixels_CIJ, box))


def _views(task: Task, images: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Images by their rows in the index, as the described model sees them."""
    geometry = load_json(Geometry, canonical_json(task.plan.effort["geometry"]))
    threads = task.setting.resources.decode_threads
    for batch in read_pixels(task.inputs, task.forward, geometry, as_ranges(images), threads, READ_IMAGES):
        for image, pixels_CIJ in zip(batch.images, batch.pixels):
            yield image.image_index, pixels_CIJ
