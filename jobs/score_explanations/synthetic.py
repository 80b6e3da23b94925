"""How active features are on images made from the texts about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from jobs.explained import Row
from jobs.files import open_planned
from jobs.models import DTYPES
from jobs.protocol import Part
from jobs.score_explanations.codes import Activations, Tower, open_tower
from jobs.score_explanations.task import Rows, Task, Text, explanation
from miclip_core.explain.makers import DiffusionMaker, ImageMaker, WorldMaker, is_black
from schemas.plans import Plan


class _Said(NamedTuple):
    """What some ways to explain a feature say of it."""

    feature: int
    text: str


@dataclass(frozen=True)
class Made:
    """What all features do on one image made from a text with a seed."""

    seed: int
    activations: Activations
    is_black: bool


def results(task: Task) -> Iterator[Part]:
    """Rows of explanation_synthetic; images of one text about a feature are made and looked at once, whoever says it."""
    asked: dict[_Said, list[tuple[Plan, Text]]] = {}
    for plan, text in task.texts_of_each():
        asked.setdefault(_Said(text.feature, text.text), []).append((plan, text))
    rows = Rows()
    for said, made in _make(task, sorted(asked)) if asked else ():
        for number, one in enumerate(made):
            of_image = {"number": number, "seed": one.seed, "is_black": one.is_black}
            for plan, text in asked[said]:
                row = {**explanation(plan, text), **of_image, **code_columns(one.activations, said.feature)}
                rows.add(plan, (text.feature, text.sequence, number), {**row, "is_positive": True, "image_index": None})
    yield from rows.parts(task.plans, "explanation_synthetic")


def code_columns(activations: Activations, feature: int) -> Row:
    """What one feature does."""
    return {"mean": float(activations.mean_U[feature]), "max": float(activations.max_U[feature])}


def get_tower(task: Task) -> Tower:
    """The model and the SAE, opened once."""
    tower: Tower = task.hold("tower", lambda: open_tower(task.plans[0], task.inputs, task.device))
    return tower


def image_seed(seed: int, feature: int, number: int) -> int:
    """Of the number-th image of any text about a feature, below 2^31; ways to explain it differ in what they say alone."""
    raw = np.random.PCG64(np.random.SeedSequence((seed, feature, number))).random_raw(1)
    return int(raw[0]) >> 33


def _make(task: Task, said: Sequence[_Said]) -> Iterator[tuple[_Said, list[Made]]]:
    """What features do on the images of each text; as many texts at once as fill a batch."""
    tower, maker, count = get_tower(task), _maker(task), int(task.params["maker_images"])
    at_once = max(1, tower.batch_size // count)
    for first in range(0, len(said), at_once):
        some = said[first : first + at_once]
        seeds = [image_seed(task.params["random_seed"], one.feature, n) for one in some for n in range(count)]
        made = _look(tower, maker, [one.text for one in some for _ in range(count)], seeds)
        yield from ((one, made[place * count : (place + 1) * count]) for place, one in enumerate(some))


def _look(tower: Tower, maker: ImageMaker, texts: Sequence[str], seeds: Sequence[int]) -> list[Made]:
    """Make an image of each text and run the model over all of them."""
    images = maker.make(texts, seeds)
    names = [f"{text!r} with seed {seed}" for text, seed in zip(texts, seeds, strict=True)]
    views = torch.stack([tower.to_pixels(image_CIJ) for image_CIJ in images])
    found = zip(seeds, tower.activations(names, views), is_black(images).tolist(), strict=True)
    return [Made(*one) for one in found]


def _maker(task: Task) -> ImageMaker:
    maker: ImageMaker = task.hold("maker", lambda: _open_maker(task))
    return maker


def _open_maker(task: Task) -> ImageMaker:
    params, folder = task.params, task.effort["folder"]
    if folder is None:
        return WorldMaker()
    return DiffusionMaker(
        open_planned(task.inputs, folder, params["maker"]),
        prefix=params["maker_prefix"],
        steps=params["maker_steps"],
        guidance=params["maker_guidance"],
        size=params["maker_size"],
        dtype=DTYPES[params["dtype"]],
        device=task.device,
        batch_size=params["maker_images"],
    )
