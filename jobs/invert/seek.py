"""Samples, which are images times starts, sought in batches: where each begins, and the rows of what is found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jobs.invert.plan import begins_at_latents, settings_of
from jobs.invert.rows import Images, Row, make_rows
from miclip_core.generate.generator import Generator
from miclip_core.generate.seeds import START_SEEDS
from miclip_core.rosetta.inversion import Goal, invert
from schemas.inversion import MOST_STARTS
from schemas.plans import Plan


def seek(
    plan: Plan, generator: Generator, images: Images, goal: Goal, pairs: int, latents_BZ: Tensor | None = None
) -> list[Row]:
    """Rows of every image and start; latents: of the images, which an edit counts from.

    Raises:
        InversionDiverged: a loss is no finite number.
    """
    settings, starts = settings_of(plan), int(str(plan.stage.params["starts"]))
    samples = [(i, start) for i in range(len(images.of)) for start in range(starts)]
    size = int(str(plan.effort["samples_at_once"]))
    rows: list[Row] = []
    for first in range(0, len(samples), size):
        of, numbers = zip(*samples[first : first + size], strict=True)
        some, order = images.take(of), torch.tensor(of, device=generator.device)
        origin = None if latents_BZ is None else latents_BZ[order]
        begin = _starts(plan, generator, some, numbers, origin)
        rows += make_rows(plan, some, numbers, invert(generator, begin, goal.take(order), settings, origin), pairs)
    return rows


def _starts(
    plan: Plan, generator: Generator, images: Images, starts: Sequence[int], latents_BZ: Tensor | None
) -> Tensor:
    """Where samples begin: random latents, each by (seed, image, start) alone; or the first at that of its image."""
    first = torch.tensor([start == 0 and begins_at_latents(plan) for start in starts], device=generator.device)
    if latents_BZ is not None and first.all():
        return latents_BZ
    seed = START_SEEDS + int(str(plan.stage.params["seed"]))
    numbers = [image.image_index * MOST_STARTS + start for image, start in zip(images.of, starts, strict=True)]
    drawn_BZ = generator.latents(seed, numbers)
    return drawn_BZ if latents_BZ is None else torch.where(first[:, None], latents_BZ, drawn_BZ)
