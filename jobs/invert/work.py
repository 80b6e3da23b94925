"""The invert worker: one generator; images are read once for an inversion or all edits, and sought in batches of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.activations import forward_effort
from jobs.bad_inputs import bad_inputs
from jobs.blame import blaming
from jobs.forward import read_pixels
from jobs.invert.pairs import OnGrid, Pair, Place, check_units, read_native_moments, read_pairs, scale_of, widths_of
from jobs.invert.plan import edit_of, partners_of
from jobs.invert.rows import TABLE, Images, Row, make_part
from jobs.invert.seek import seek
from jobs.invert.targets import Targets, own_grid
from jobs.models import open_generator
from jobs.pixels import Problem
from jobs.protocol import ImageBytes, Inputs, Keep, Part, Setting
from jobs.threads import use_cpus
from miclip_core.generate.generator import Generator, as_uint8
from miclip_core.generate.location import parse_image
from miclip_core.rosetta.inversion import Goal, Guides, edit_goal
from schemas.errors import NothingToGuide
from schemas.inversion import Edit
from schemas.plans import Plan, Shard

Asked = tuple[int, int | None]
"""k, and how many pairs at most."""


class InvertWorker:
    """Serves the inversions and the edits of one generator over one image set; `notes` says what people should know."""

    def __init__(self, setting: Setting) -> None:
        use_cpus(setting)
        self._setting = setting
        self._plans = {plan.digest: plan for plan in setting.plans}
        self._generator: Generator | None = None
        self._pairs: dict[Asked, list[Pair]] = {}
        self._targets: dict[Asked, Targets] = {}
        self._guides: dict[tuple[Place, ...], tuple[Guides, ...]] = {}
        self.notes: list[str] = []

    def process(self, shard: Shard, stages: Sequence[str], inputs: Inputs, keep: Keep) -> Iterator[Part]:
        """The latents that are found for a range of images, and the images of it that cannot be used."""
        self.notes.clear()
        plans = [self._plans[stage] for stage in stages]
        if self._generator is None:
            self._generator = open_generator(forward_effort(plans[0]), inputs, self._setting.device)
        images, problems = self._read(plans[0], self._generator, shard, inputs)
        for plan in plans:
            with blaming(plan):
                edit = edit_of(plan)
                if edit is None:
                    rows, more = self._inverted(plan, self._generator, images, shard, inputs)
                else:
                    rows, more = self._edited(plan, self._generator, edit, images, inputs), []
            yield from bad_inputs([plan], _once([*problems, *more]))
            if rows:
                yield make_part(plan, rows)
        self.notes[:] = dict.fromkeys(self.notes)

    def _read(self, plan: Plan, generator: Generator, shard: Shard, inputs: Inputs) -> tuple[Images, list[Problem]]:
        """The usable images of a shard as the generator would draw them, and all others."""
        forward, threads = forward_effort(plan), self._setting.resources.decode_threads
        size, rows = int(str(forward.effort["batch_size"])), [(shard.start, shard.stop)]
        images: list[ImageBytes] = []
        pixels: list[Tensor] = [torch.empty(0, 3, *generator.facts.input_hw, dtype=torch.uint8)]
        problems: list[Problem] = []
        for batch in read_pixels(inputs, forward, generator.facts.geometry, rows, threads, size):
            problems += batch.problems
            if batch.images:
                images += batch.images
                pixels.append(batch.pixels[: len(batch.images)])
        return Images(images, torch.cat(pixels).to(self._setting.device)), problems

    # -------------------------------------------------------------- an inversion

    def _inverted(
        self, plan: Plan, generator: Generator, images: Images, shard: Shard, inputs: Inputs
    ) -> tuple[list[Row], list[Problem]]:
        """Rows of the images that every member that guides can use, and the others."""
        if not images.of:
            return [], []
        pairs, targets = self._get_pairs(plan, inputs), self._get_targets(plan, generator, inputs)
        found = targets.find(shard.start, shard.stop)
        self.notes += targets.notes
        place_of = {image.image_index: i for i, image in enumerate(images.of)}
        both = [i for i, index in enumerate(found.images) if index in place_of]
        if not both:
            return [], found.problems
        kept = images.take([place_of[found.images[i]] for i in both])
        goal = Goal(found.wanted).take(torch.tensor(both, device=generator.device))
        goal = replace(goal, pixels=kept.pixels.float() / 255)
        return seek(plan, generator, kept, goal, len(pairs)), found.problems

    def _get_targets(self, plan: Plan, generator: Generator, inputs: Inputs) -> Targets:
        asked, threads = _asked(plan), self._setting.resources.decode_threads
        if asked not in self._targets:
            pairs, device = self._get_pairs(plan, inputs), self._setting.device
            self._targets[asked] = Targets(generator.facts, partners_of(plan), pairs, inputs, device, threads)
        return self._targets[asked]

    def _get_pairs(self, plan: Plan, inputs: Inputs) -> list[Pair]:
        asked = _asked(plan)
        if asked not in self._pairs:
            self._pairs[asked] = read_pairs(inputs, partners_of(plan), *asked)
        return self._pairs[asked]

    # -------------------------------------------------------------- an edit

    def _edited(self, plan: Plan, generator: Generator, edit: Edit, images: Images, inputs: Inputs) -> list[Row]:
        if not images.of:
            return []
        there, latents_BZ = _known_latents(plan, generator, images, inputs)
        if missing := len(images.of) - len(there):
            self.notes.append(f"{missing} images left out: what is read found no latent for them to begin at")
        if not there:
            return []
        goal, unable = edit_goal(generator, latents_BZ, self._get_guides(plan, generator, inputs), edit)
        if unable:
            sites = ", ".join(f"{some.site} ({some.grid[0]}x{some.grid[1]})" for some in unable)
            self.notes.append(f"{edit}: maps of {sites} are too small to be shifted and do not count")
        if not goal.maps:
            raise NothingToGuide(
                f"{edit}: no paired unit of {plan.stage.subject} has a map that can be shifted by that much"
            )
        assert goal.pixels is not None
        before = replace(images.take(there), pixels=as_uint8(goal.pixels))
        return seek(plan, generator, before, goal, sum(len(some.guides.units) for some in goal.maps), latents_BZ)

    def _get_guides(self, plan: Plan, generator: Generator, inputs: Inputs) -> tuple[Guides, ...]:
        """The chosen units, else every unit that has a buddy, each once, on its own grid."""
        chosen: Any = plan.stage.params.get("chosen")
        if chosen is None:
            places = tuple(sorted({pair.own for pair in self._get_pairs(plan, inputs)}))
        else:
            places = tuple(sorted((str(site), int(unit)) for site, unit in chosen))
        if places not in self._guides:
            self._guides[places] = tuple(_make_guides(plan, generator, places, inputs))
        return self._guides[places]


def _make_guides(plan: Plan, generator: Generator, places: Sequence[Place], inputs: Inputs) -> Iterator[Guides]:
    facts = generator.facts
    check_units(facts.model, widths_of(facts), places)
    grids = {site: own_grid(facts, site) for site, _ in places}
    moments = read_native_moments(inputs, plan.stage.inputs["units"], places, grids)
    for site, grid in grids.items():
        units = [unit for of, unit in places if of == site]
        scale = scale_of(moments, (OnGrid(None, (site, unit), grid) for unit in units))
        yield Guides(site, grid, grid, torch.tensor(units, device=generator.device), scale)


def _known_latents(plan: Plan, generator: Generator, images: Images, inputs: Inputs) -> tuple[list[int], Tensor]:
    """Which of some images have a latent, and these: known if the generator drew them, else the best that was found."""
    if "inversion" not in plan.stage.inputs:
        drawn = [parse_image(image.uri) for image in images.of]
        return list(range(len(drawn))), generator.latents(drawn[0][0].seed, [number for _, number in drawn])
    wanted = [(image.image_index, image.image_index + 1) for image in images.of]
    found: dict[int, list[float]] = {}
    columns = ["image_index", "is_best", "latent"]
    for batch in inputs.table(plan.stage.inputs["inversion"], TABLE, columns, ("image_index", wanted)):
        found |= {row["image_index"]: row["latent"] for row in batch.to_pylist() if row["is_best"]}
    there = [i for i, image in enumerate(images.of) if image.image_index in found]
    latents = np.array([found[images.of[i].image_index] for i in there], np.float32)
    return there, torch.from_numpy(latents).reshape(len(there), generator.latent_dim).to(generator.device)


def _asked(plan: Plan) -> Asked:
    params: Any = plan.stage.params
    return params["k"], params["pairs"]


def _once(problems: Sequence[Problem]) -> list[Problem]:
    """One for each image, in their order: what the generator cannot use no member that guides can, as a rule."""
    first: dict[int, Problem] = {}
    for problem in problems:
        first.setdefault(problem.image.image_index, problem)
    return [first[index] for index in sorted(first)]


def open_worker(setting: Setting, inputs: Inputs) -> InvertWorker:
    """Nothing is loaded before a shard needs it."""
    return InvertWorker(setting)
