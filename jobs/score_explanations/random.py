"""How active features are on random images of the set to score on, which images made from texts are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from jobs.latents import choose, read_features
from jobs.protocol import ImageBytes, Part
from jobs.score_explanations.synthetic import code_columns, get_tower
from jobs.score_explanations.task import Rows, Task
from miclip_core.explain.draws import draw_distinct
from schemas.errors import NothingToScore

NOBODY = ("vlm", "method", "masking", "direction", "positions", "alpha_asked", "alpha_unit", "sequence")


def results(task: Task) -> Iterator[Part]:
    """Rows of explanation_synthetic that are no positives: for each feature of its own as many images as are made of a text."""
    (plan,) = task.plans
    features = task.part(task.hold("explained", lambda: _explained(task)))
    images = task.hold("usable", lambda: _usable(task))
    seed, count = task.params["random_seed"], task.params["maker_images"]
    wanted: dict[int, list[tuple[int, int]]] = {}
    for feature in features:
        for number, place in enumerate(draw_distinct(len(images), count, seed, feature)):
            wanted.setdefault(int(images[place]), []).append((feature, number))
    rows, tower = Rows(), get_tower(task)
    for some in _batches(task, sorted(wanted)):
        names = [image.image_id for image, _ in some]
        views = torch.stack([pixels_CIJ for _, pixels_CIJ in some])
        for (image, pixels_CIJ), found in zip(some, tower.activations(names, views), strict=True):
            is_black = not bool(pixels_CIJ.any())
            same = {**dict.fromkeys(NOBODY), "is_positive": False, "seed": None, "is_black": is_black}
            for feature, number in wanted[image.image_index]:
                of_image = {"feature": feature, "number": number, "image_index": image.image_index}
                rows.add(plan, (feature, number), {**same, **of_image, **code_columns(found, feature)})
    yield from rows.parts(task.plans, "explanation_synthetic")


def _explained(task: Task) -> list[int]:
    """All features that any way to explain has rows of, ascending; known before there is a text."""
    inputs, found = task.plans[0].stage.inputs, set[int]()
    for number, wanted in enumerate(task.params["wanted"]):
        there = read_features(task.inputs, inputs[f"described.{number}"])
        found |= {one.number for one in choose(there, wanted["features"], wanted["most"])}
    return sorted(found)


def _batches(task: Task, images: Sequence[int]) -> Iterator[list[tuple[ImageBytes, Tensor]]]:
    """Images in the order of the index, as many as are run together."""
    size = int(str(task.forward.effort["batch_size"]))
    batch: list[tuple[ImageBytes, Tensor]] = []
    for one in task.pixels(images):
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _usable(task: Task) -> np.ndarray:
    """Rows of the index that may be drawn, int64 ascending: each image once, and none that explanations were made from.

    Raises:
        NothingToScore: there is none.
    """
    names, rows = ("image_index", "duplicate_of"), [(0, task.params["rows"])]
    parts = task.inputs.table(task.index, "images", names, ("image_index", rows))
    alone = [part["image_index"].filter(part["duplicate_of"].is_null()).to_numpy() for part in parts]
    left_out = np.fromiter(task.left_out, np.int64, len(task.left_out))
    found: np.ndarray = np.setdiff1d(np.concatenate([np.empty(0, np.int64), *alone]), left_out)
    if not len(found):
        raise NothingToScore("no image is left to compare made ones with; give the sae_features stage more images")
    return found
