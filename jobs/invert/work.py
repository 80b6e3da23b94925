"""The invert worker: one generator; images are read once for an inversion or all edits, and sought in batches of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.activations import forward_effort
from jobs.blame import blaming
from jobs.forward import read_pixels
from jobs.invert.pairs import OnGrid, Place, check_units, read_native_moments, read_pairs, scale_of
from jobs.invert.plan import begins_at_latents, edit_of, partners_of, settings_of
from jobs.invert.rows import TABLE, Row, make_part, make_rows
from jobs.invert.targets import Targets, own_grid
from jobs.models import open_generator
from jobs.protocol import ImageBytes, Inputs, Keep, Part, Setting
from jobs.threads import use_cpus
from miclip_core.generate.generator import Generator
from miclip_core.rosetta.inversion import Goal, Guides, edit_goal, invert
from schemas.errors import NothingToGuide
from schemas.inversion import Edit
from schemas.plans import Plan, Shard

START_SEEDS = 2**48
"""Random starts are drawn from seeds from here on: no image of a generated set begins at its own latent by chance."""
MOST_STARTS = 2**10
"""Numbers of latents that are kept for the starts of each image."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images of a shard as the generator would draw them: uint8 [n, 3, h, w]."""

    of: Sequence[ImageBytes]
    pixels: Tensor

    def take(self, places: Sequence[int]) -> Images:
        """Some of them, in the order asked for, with repeats."""
        return Images([self.of[i] for i in places], self.pixels[list(places)])


class InvertWorker:
    """Serves the inversion and the edits of one generator over one image set; `notes` says what people should know."""

    def __init__(self, setting: Setting, inputs: Inputs) -> None:
        use_cpus(setting)
        self._setting = setting
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._opened: Generator | None = None
        self._guides: dict[str, tuple[Guides, ...]] = {}
        self._targets: dict[str, tuple[Targets, int]] = {}
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part]:
        """The latents that are found for a range of images."""
        self.notes.clear()
        plans = [self._plans[stage] for stage in stages]
        images = self._read(plans[0], shard, inputs)
        for plan in plans if images.of else ():
            with blaming(plan):
                edit = edit_of(plan)
                rows = (
                    self._inverted(plan, images, shard, inputs)
                    if edit is None
                    else self._edited(plan, edit, images, inputs)
                )
            if rows:
                yield make_part(plan, rows)
        self.notes[:] = dict.fromkeys(self.notes)

    # -------------------------------------------------------------- images and latents

    def _open(self, plan: Plan, inputs: Inputs) -> Generator:
        if self._opened is None:
            self._opened = open_generator(forward_effort(plan), inputs, self._setting.device)
        return self._opened

    def _read(self, plan: Plan, shard: Shard, inputs: Inputs) -> Images:
        """The usable images of a shard."""
        generator, forward = self._open(plan, inputs), forward_effort(plan)
        threads, size = self._setting.resources.decode_threads, int(str(forward.effort["batch_size"]))
        images: list[ImageBytes] = []
        pixels: list[Tensor] = [torch.empty(0, 3, *generator.facts.input_hw, dtype=torch.uint8)]
        problems: Counter[str] = Counter()
        geometry = generator.facts.geometry
        for batch in read_pixels(inputs, forward, geometry, [(shard.start, shard.stop)], threads, size):
            problems.update(problem.reason for problem in batch.problems)
            if batch.images:
                images += batch.images
                pixels.append(batch.pixels[: len(batch.images)])
        self.notes += [f"{count} images left out: {reason}" for reason, count in problems.items()]
        return Images(images, torch.cat(pixels).to(self._setting.device))

    @property
    def _opened_generator(self) -> Generator:
        assert self._opened is not None
        return self._opened

    def _known_latents(self, plan: Plan, images: Images, inputs: Inputs) -> tuple[list[int], Tensor]:
        """Which of the images have a latent, and these: known if the generator drew them, else the best that was found."""
        generator, seed = self._opened_generator, plan.stage.params.get("drawn_seed")
        if seed is not None:
            numbers = [int(image.uri.rpartition("#")[2]) for image in images.of]
            return list(range(len(images.of))), generator.latents(int(str(seed)), numbers)
        wanted = [(image.image_index, image.image_index + 1) for image in images.of]
        found: dict[int, list[float]] = {}
        columns = ["image_index", "is_best", "latent"]
        for batch in inputs.table(plan.stage.inputs["inversion"], TABLE, columns, ("image_index", wanted)):
            found |= {row["image_index"]: row["latent"] for row in batch.to_pylist() if row["is_best"]}
        there = [i for i, image in enumerate(images.of) if image.image_index in found]
        latents = np.array([found[images.of[i].image_index] for i in there], np.float32)
        return there, torch.from_numpy(latents).reshape(len(there), generator.latent_dim).to(generator.device)

    # -------------------------------------------------------------- an inversion

    def _inverted(self, plan: Plan, images: Images, shard: Shard, inputs: Inputs) -> list[Row]:
        targets, pairs = self._open_targets(plan, inputs)
        usable, maps = targets.find(shard.start, shard.stop)
        self.notes += targets.notes
        places = {image.image_index: i for i, image in enumerate(images.of)}
        both = [i for i in usable if i in places]
        if not both:
            return []
        kept = images.take([places[i] for i in both])
        goal = Goal(maps).take(torch.tensor([usable.index(i) for i in both], device=self._setting.device))
        return self._seek(plan, kept, replace(goal, pixels=_unit(kept.pixels)), None, pairs)

    def _open_targets(self, plan: Plan, inputs: Inputs) -> tuple[Targets, int]:
        """The members that guide and how many pairs there are."""
        if plan.digest not in self._targets:
            partners, params = partners_of(plan), plan.stage.params
            pairs = read_pairs(inputs, partners, int(str(params["k"])), params["pairs"])  # type: ignore[arg-type]
            facts, threads = self._opened_generator.facts, self._setting.resources.decode_threads
            targets = Targets(facts, partners, pairs, inputs, self._setting.device, threads)
            self._targets[plan.digest] = targets, len(pairs)
        return self._targets[plan.digest]

    # -------------------------------------------------------------- an edit

    def _edited(self, plan: Plan, edit: Edit, images: Images, inputs: Inputs) -> list[Row]:
        there, latents = self._known_latents(plan, images, inputs)
        if not there:
            self.notes.append("images without a latent to begin at were left out")
            return []
        generator = self._opened_generator
        goal, unable = edit_goal(generator, latents, self._open_guides(plan, inputs), edit)
        if unable:
            sites = ", ".join(f"{some.site} ({some.grid[0]}x{some.grid[1]})" for some in unable)
            self.notes.append(f"{edit}: maps of {sites} are too small to be shifted and do not count")
        if not goal.maps:
            raise NothingToGuide(
                f"{edit}: no paired unit of {plan.stage.subject} has a map that can be shifted by that much"
            )
        return self._seek(
            plan, images.take(there), goal, latents, sum(len(wanted.guides.units) for wanted in goal.maps)
        )

    def _open_guides(self, plan: Plan, inputs: Inputs) -> tuple[Guides, ...]:
        """The chosen units, else every unit that has a buddy, each once, on its own grid."""
        if plan.digest not in self._guides:
            partners, params = partners_of(plan), plan.stage.params
            chosen: Any = params.get("chosen")
            if chosen is None:
                pairs = read_pairs(inputs, partners, int(str(params["k"])), params["pairs"])  # type: ignore[arg-type]
                places = sorted({pair.own for pair in pairs})
            else:
                places = sorted((str(site), int(unit)) for site, unit in chosen)
            self._guides[plan.digest] = tuple(self._make_guides(plan, places, inputs))
        return self._guides[plan.digest]

    def _make_guides(self, plan: Plan, places: Sequence[Place], inputs: Inputs) -> Iterator[Guides]:
        facts = self._opened_generator.facts
        check_units(facts, places)
        grids = {site: own_grid(facts, site) for site, _ in places}
        moments = read_native_moments(inputs, plan.stage.inputs["units"], places, grids)
        for site, grid in grids.items():
            units = [unit for of, unit in places if of == site]
            scale = scale_of(moments, (OnGrid(None, (site, unit), grid) for unit in units))
            yield Guides(site, grid, grid, torch.tensor(units, device=self._setting.device), scale)

    # -------------------------------------------------------------- both

    def _seek(self, plan: Plan, images: Images, goal: Goal, latents: Tensor | None, pairs: int) -> list[Row]:
        """Rows of every image and start; latents: of the images, which an edit counts from.

        Pixels of the goal count as far as the settings say, and are what drawn images are compared with.
        """
        settings, starts = settings_of(plan), int(str(plan.stage.params["starts"]))
        samples = [(i, start) for i in range(len(images.of)) for start in range(starts)]
        size = int(str(plan.effort["samples_at_once"]))
        rows: list[Row] = []
        for first in range(0, len(samples), size):
            of, numbers = zip(*samples[first : first + size], strict=True)
            some, order = images.take(of), torch.tensor(of, device=self._setting.device)
            origin = None if latents is None else latents[order]
            begin = self._starts(plan, some, numbers, origin)
            found = invert(self._opened_generator, begin, goal.take(order), settings, origin)
            assert goal.pixels is not None
            before = (goal.pixels[order].clamp(0, 1) * 255).round().to(torch.uint8)
            rows += make_rows(plan, some.of, numbers, found, before, pairs)
        return rows

    def _starts(self, plan: Plan, images: Images, starts: Sequence[int], latents: Tensor | None) -> Tensor:
        """Where samples begin: random latents, each by (seed, image, start) alone; or the first at that of its image."""
        first = torch.tensor([start == 0 and begins_at_latents(plan) for start in starts], device=self._setting.device)
        if latents is not None and first.all():
            return latents
        seed = START_SEEDS + int(str(plan.stage.params["seed"]))
        numbers = [image.image_index * MOST_STARTS + start for image, start in zip(images.of, starts, strict=True)]
        drawn = self._opened_generator.latents(seed, numbers)
        return drawn if latents is None else torch.where(first[:, None], latents, drawn)


def _unit(pixels: Tensor) -> Tensor:
    """uint8 as floats in 0..1."""
    return pixels.float() / 255


def open_worker(setting: Setting, inputs: Inputs) -> InvertWorker:
    """Nothing is loaded before a shard needs it."""
    return InvertWorker(setting, inputs)
