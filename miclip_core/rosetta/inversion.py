"""Latents whose images have wanted maps, wanted pixels or both: guided inversion and editing, many starts at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from miclip_core.rosetta.edits import can_edit, edited
from miclip_core.rosetta.grids import Grid
from miclip_core.rosetta.similarity import resized, similarity
from miclip_core.rosetta.standardise import Scale, standardised
from schemas.errors import InversionDiverged
from schemas.inversion import Edit, InversionSettings

RISES, FALLS = 0.05, 0.25
"""Share of the steps over which the rate rises from 0, and over which it falls back to it."""


class Draws(Protocol):
    """What a generator must do to be inverted."""

    def run(self, latents_BZ: Tensor, sites: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Images [B, 3, h, w] in 0..1 and rows [B, P, U] of the maps at each site, differentiable in the latents."""
        ...


@dataclass(frozen=True, eq=False)
class Guides:
    """Units of one site of the generator as they are compared: channels [Q] of maps on `grid`, resized to `target`.

    scale: mean and standard deviation of the resized maps over the data set, fp64 [Q]. A unit that has several partners
    is there several times.
    """

    site: str
    grid: Grid
    target: Grid
    units: Tensor
    scale: Scale

    def standardise(self, rows_BPU: Tensor) -> Tensor:
        """z [B, P, Q] of the site's rows [B, P, U]."""
        return standardised(resized(rows_BPU[:, :, self.units], self.grid, self.target), self.scale)[0]


@dataclass(frozen=True, eq=False)
class Wanted:
    """What the maps of some units should be: standardised, [B, P, Q] on the target of the guides."""

    guides: Guides
    maps: Tensor


@dataclass(frozen=True, eq=False)
class Goal:
    """What is sought for each of B samples: maps, and pixels [B, 3, h, w] in 0..1 if they count."""

    maps: tuple[Wanted, ...]
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels if self.pixels is not None else self.maps[0].maps)

    def take(self, samples: Tensor | slice) -> Goal:
        """The goal of some samples, in the order asked for, with repeats for several starts of one image."""
        maps = tuple(replace(wanted, maps=wanted.maps[samples]) for wanted in self.maps)
        return Goal(maps, None if self.pixels is None else self.pixels[samples])


@dataclass(frozen=True, eq=False)
class Inversion:
    """Latents [B, d] that were found, and what they draw: images [B, 3, h, w].

    losses, similarities, pixels: the objective, the mean similarity of maps and the mean squared difference of pixels
    (zeros where pixels are not sought), float32 [B, steps + 1], before every update and after the last.
    steps: updates of each sample, int64 [B].
    """

    latents: Tensor
    images: Tensor
    losses: Tensor
    similarities: Tensor
    pixels: Tensor
    steps: Tensor


class _Terms(NamedTuple):
    loss: Tensor
    similarity: Tensor
    pixels: Tensor


def invert(
    generator: Draws, starts_BZ: Tensor, goal: Goal, settings: InversionSettings, origin_BZ: Tensor | None = None
) -> Inversion:
    """Seek for every sample a latent near its start that has the maps and pixels of its goal, by Adam.

    loss = reconstruction * mean squared difference of pixels - activation * mean similarity over pairs of units
    + regulariser * mean size of the latent (Rosetta Neurons, Dravid et al. 2023; the thesis' Eqs. 4.5 and 4.7). Samples do
    not interact: the result of each is that of a run of its own, up to rounding.

    origin: what `towards: start` counts the size from, such as the latent of an image whose edit is also sought from
    elsewhere; the starts if None.

    Raises:
        InversionDiverged: a loss is no finite number.
    """
    origin_BZ = starts_BZ if origin_BZ is None else origin_BZ
    latents = starts_BZ.detach().clone().requires_grad_(True)
    adam = torch.optim.Adam([latents], lr=settings.lr, betas=settings.betas)
    ended = _Ended(len(latents), settings)
    steps = torch.zeros(len(latents), dtype=torch.int64)
    curve: list[_Terms] = []
    for step in range(settings.steps):
        images, z = _draw(generator, latents, goal)
        terms = _terms(latents, origin_BZ, images, z, goal, settings)
        curve.append(_Terms(*(term.detach() for term in terms)))
        running = ended.look(step, z)
        if not running.any():
            break
        (latents.grad,) = torch.autograd.grad(terms.loss.sum(), latents)
        adam.param_groups[0]["lr"] = rate(settings, step)
        before = latents.detach().clone()
        adam.step()
        with torch.no_grad():
            latents.copy_(torch.where(running[:, None], latents, before))
        steps += running.cpu()
    return _finish(generator, latents.detach(), origin_BZ, goal, settings, curve, steps)


def rate(settings: InversionSettings, step: int) -> float:
    """The learning rate of update `step`, counted from 0: constant, or up and down again along a cosine.

    The ramp is that of StyleGAN2's projector (Karras et al. 2020): 0 at the start, whole from 5 % to 75 %, 0 at the end.
    """
    if not settings.ramp:
        return settings.lr
    done = step / settings.steps
    falling = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / FALLS))
    return settings.lr * falling * min(1.0, done / RISES)


def edit_goal(
    generator: Draws, latents_BZ: Tensor, guides: Iterable[Guides], edit: Edit
) -> tuple[Goal, tuple[Guides, ...]]:
    """The generator's own maps of some units at these latents, edited raw, then standardised; and which cannot be edited.

    pixels of the goal: the images at these latents.
    """
    able = [some for some in guides if can_edit(some.grid, edit)]
    unable = tuple(some for some in guides if not can_edit(some.grid, edit))
    with torch.no_grad():
        images, rows = generator.run(latents_BZ, _sites(able))
        maps = tuple(Wanted(some, some.standardise(edited(rows[some.site], some.grid, edit))) for some in able)
    return Goal(maps, images), unable


def pair_similarities(generator: Draws, latents_BZ: Tensor, goal: Goal, settings: InversionSettings) -> Tensor:
    """Similarity [B, Q] of every pair of the goal, in the order of its maps, at these latents."""
    with torch.no_grad():
        _, z = _draw(generator, latents_BZ, goal)
        return _similarities(z, goal, settings)


# ---------------------------------------------------------------- one step


def _sites(guides: Iterable[Guides]) -> list[str]:
    return list(dict.fromkeys(some.site for some in guides))


def _draw(generator: Draws, latents_BZ: Tensor, goal: Goal) -> tuple[Tensor, list[Tensor]]:
    """Images, and the standardised maps of each of the goal's guides."""
    images, rows = generator.run(latents_BZ, _sites(wanted.guides for wanted in goal.maps))
    return images, [wanted.guides.standardise(rows[wanted.guides.site]) for wanted in goal.maps]


def _terms(
    latents_BZ: Tensor,
    origin_BZ: Tensor,
    images: Tensor,
    z: Sequence[Tensor],
    goal: Goal,
    settings: InversionSettings,
) -> _Terms:
    away_BZ = latents_BZ - origin_BZ if settings.towards == "start" else latents_BZ
    size_B = (away_BZ.square() if settings.norm == "l2" else away_BZ.abs()).mean(1)
    none_B = torch.zeros_like(size_B)
    alike_B = _similarities(z, goal, settings).mean(1) if z else none_B
    error_B = none_B if goal.pixels is None else (images - goal.pixels).square().flatten(1).mean(1)
    loss_B = settings.reconstruction * error_B - settings.activation * alike_B + settings.regulariser * size_B
    return _Terms(loss_B, alike_B, error_B)


def _similarities(z: Sequence[Tensor], goal: Goal, settings: InversionSettings) -> Tensor:
    pairs = zip(z, goal.maps, strict=True)
    return torch.cat([similarity(own, wanted.maps, settings.similarity) for own, wanted in pairs], 1)


def _finish(
    generator: Draws,
    latents_BZ: Tensor,
    origin_BZ: Tensor,
    goal: Goal,
    settings: InversionSettings,
    curve: list[_Terms],
    steps: Tensor,
) -> Inversion:
    with torch.no_grad():
        images, z = _draw(generator, latents_BZ, goal)
        last = _terms(latents_BZ, origin_BZ, images, z, goal, settings)
    curve += [last] * (settings.steps + 1 - len(curve))
    losses, alike, errors = (torch.stack(values, 1).float() for values in zip(*curve, strict=True))
    if not torch.isfinite(losses).all():
        first = int((~torch.isfinite(losses)).any(0).nonzero()[0])
        raise InversionDiverged(
            f"the loss is no finite number from step {first} of {settings.steps} on; lower lr (found {settings.lr:g})"
        )
    return Inversion(latents_BZ, images, losses, alike, errors, steps)


class _Ended:
    """Which samples still move: compares standardised maps with those of a twentieth of the steps before."""

    def __init__(self, samples: int, settings: InversionSettings) -> None:
        self._tolerance = settings.tolerance
        self._window = max(1, round(RISES * settings.steps))
        self._samples = samples
        self._running: Tensor | None = None
        self._earlier: list[Tensor] = []

    def look(self, step: int, z: Sequence[Tensor]) -> Tensor:
        """bool [B]: the samples that go on."""
        if self._running is None:
            self._running = torch.ones(self._samples, dtype=torch.bool, device=z[0].device if z else None)
        if self._tolerance is not None and z and step and step % self._window == 0:
            now = [some.detach() for some in z]
            if self._earlier:  # not after the first window, in which the rate is rising
                moved = torch.cat([(a - b).abs().flatten(1) for a, b in zip(now, self._earlier, strict=True)], 1)
                self._running = self._running & (moved.mean(1) >= self._tolerance)
            self._earlier = now
        return self._running
