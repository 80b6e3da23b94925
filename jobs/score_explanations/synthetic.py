"""How active features are on images made from the texts about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from jobs.explained import Row
from jobs.files import open_planned
from jobs.models import DTYPES
from jobs.protocol import Part
from jobs.score_explanations.codes import Activations, Tower, open_tower
from jobs.score_explanations.recent import Recent
from jobs.score_explanations.task import Rows, Task, Text, explanation
from miclip_core.explain.makers import DiffusionMaker, ImageMaker, WorldMaker, is_black
from schemas.plans import Plan

KEPT_BYTES = 256 << 20
"""Of activations on made images that a worker remembers: texts come again in other shards."""


@dataclass(frozen=True)
class Made:
    """What all features do on one image made from a text."""

    activations: Activations
    is_black: bool


def results(task: Task) -> Iterator[Part]:
    """Rows of explanation_synthetic; images of one text are made and looked at once, whoever says it of whichever feature."""
    asked: dict[str, list[tuple[Plan, Text]]] = {}
    for plan, said in task.texts_of_each():
        asked.setdefault(said.text, []).append((plan, said))
    rows = Rows()
    for text, made in _make(task, sorted(asked)) if asked else ():
        for number, one in enumerate(made):
            of_image = {"number": number, "seed": _seeds(task)[number], "is_black": one.is_black}
            for plan, said in asked[text]:
                row = {**explanation(plan, said), **of_image, **code_columns(one.activations, said.feature)}
                place = (said.feature, said.sequence, number)
                rows.add(plan, place, {**row, "is_positive": True, "image_index": None})
    yield from rows.parts(task.plans, "explanation_synthetic")


def code_columns(activations: Activations, feature: int) -> Row:
    """What one feature does."""
    return {"mean": float(activations.mean_U[feature]), "max": float(activations.max_U[feature])}


def get_tower(task: Task) -> Tower:
    """The model and the SAE, opened once."""
    tower: Tower = task.hold("tower", lambda: open_tower(task.plans[0], task.inputs, task.device))
    return tower


def _seeds(task: Task) -> list[int]:
    """Of the images of every text, so that two texts differ in what they say alone."""
    return [task.params["random_seed"] + number for number in range(task.params["maker_images"])]


def _make(task: Task, texts: Sequence[str]) -> Iterator[tuple[str, tuple[Made, ...]]]:
    """What features do on the images of each text; as many new texts at once as fill a batch."""
    tower, maker, seeds = get_tower(task), _maker(task), _seeds(task)
    each = 8 * len(seeds) * tower.sae.config.latents
    seen: Recent[str, tuple[Made, ...]] = task.hold("made", lambda: Recent(max(1, KEPT_BYTES // each)))
    at_once = max(1, tower.batch_size // len(seeds))
    new = []
    for text in texts:
        if (made := seen.get(text)) is not None:
            yield text, made
        else:
            new.append(text)
    for first in range(0, len(new), at_once):
        some = new[first : first + at_once]
        for text, made in zip(some, _look(tower, maker, some, seeds), strict=True):
            yield text, seen.put(text, made)


def _look(tower: Tower, maker: ImageMaker, texts: Sequence[str], seeds: Sequence[int]) -> list[tuple[Made, ...]]:
    """Make the images of some texts and run the model over them."""
    images = maker.make([text for text in texts for _ in seeds], [*seeds] * len(texts))
    names = [f"{text!r} with seed {seed}" for text in texts for seed in seeds]
    views = torch.stack([tower.to_pixels(image_CIJ) for image_CIJ in images])
    found = [Made(*pair) for pair in zip(tower.activations(names, views), is_black(images).tolist(), strict=True)]
    return [tuple(found[first : first + len(seeds)]) for first in range(0, len(found), len(seeds))]


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
