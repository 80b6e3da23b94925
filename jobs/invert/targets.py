"""What the maps of a generator's units should be on an image: those of their buddies in models that read it, computed once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jobs.bad_inputs import nonfinite
from jobs.forward import IndexForward
from jobs.invert.pairs import Moments, OnGrid, Pair, check_units, read_moments, scale_of, widths_of
from jobs.invert.partners import Partner
from jobs.models import open_model
from jobs.pixels import Problem
from jobs.protocol import Inputs
from jobs.rows import Rows, SetAside, stop_for, usable_rows
from jobs.sae_files import WEIGHTS
from miclip_core.rosetta.grids import Grid, common_grid
from miclip_core.rosetta.inversion import Guides, Wanted
from miclip_core.rosetta.similarity import resized
from miclip_core.rosetta.standardise import standardised
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae
from miclip_core.zoo.model import VisionModel
from schemas.models import ModelFacts
from schemas.refs import Site, site_path

Seen = dict[int, dict[str, Tensor]]
"""What one member has of each image, by image_index and site: maps [P, Q] of its paired units there, in ascending order."""


class Found(NamedTuple):
    """image_index of images that every member could use, their wanted maps in that order, and the images set aside."""

    images: list[int]
    wanted: tuple[Wanted, ...]
    problems: list[Problem]


class Targets:
    """The members that guide and their pairs with the generator; `notes` says what people should know of the last range."""

    def __init__(
        self,
        generator: ModelFacts,
        partners: Sequence[Partner],
        pairs: Sequence[Pair],
        inputs: Inputs,
        device: str,
        threads: int,
    ) -> None:
        """Opens the members.

        Raises:
            BadUnits: a unit that a model or an SAE does not have. NothingToGuide: statistics are missing.
        """
        self._partners, self._inputs, self._device, self._threads = partners, inputs, device, threads
        self._generator, self._pairs = generator, pairs
        self._units = _units_by_site(pairs)
        self._models = {number: self._open(number) for number in self._units}
        self._saes = {n: self._load_sae(sae) for n in self._units if (sae := partners[n].sae) is not None}
        self._check_units()
        self._groups: dict[tuple[str, Grid], list[Pair]] = defaultdict(list)
        for pair in pairs:
            self._groups[pair.own[0], self._target(pair)].append(pair)
        self._moments: Moments = read_moments(inputs, partners, (key for pair in pairs for key in self._keys(pair)))
        self.notes: list[str] = []

    def find(self, start: int, stop: int) -> Found:
        """What is wanted of the images among rows [start, stop) of the index.

        Raises:
            NonFiniteActivation: an image gives no numbers, and the mined stage stops there.
        """
        self.notes.clear()
        problems: list[Problem] = []
        seen = {number: self._look(number, (start, stop), problems) for number in self._units}
        images = sorted(set.intersection(*(set(of) for of in seen.values())))
        groups = self._groups.items() if images else ()
        return Found(images, tuple(self._wanted(*key, pairs, images, seen) for key, pairs in groups), problems)

    # -------------------------------------------------------------- pairs of one site and grid

    def _wanted(
        self, site: str, target: Grid, pairs: Sequence[Pair], images: Sequence[int], seen: Mapping[int, Seen]
    ) -> Wanted:
        units = torch.tensor([pair.own[1] for pair in pairs], device=self._device)
        scale = scale_of(self._moments, (OnGrid(None, pair.own, target) for pair in pairs))
        together: dict[tuple[int, str], list[int]] = defaultdict(list)
        for q, pair in enumerate(pairs):
            together[pair.partner, pair.other[0]].append(q)
        maps = [self._alike([pairs[q] for q in of], target, images, seen[n]) for (n, _), of in together.items()]
        order = torch.tensor([q for of in together.values() for q in of]).argsort().to(self._device)
        return Wanted(
            Guides(site, own_grid(self._generator, site), target, units, scale), torch.cat(maps, 2)[:, :, order]
        )

    def _alike(self, pairs: Sequence[Pair], target: Grid, images: Sequence[int], seen: Seen) -> Tensor:
        """The maps [B, P, Q] that buddies at one site of one member have, as their units of the generator should."""
        number, site = pairs[0].partner, pairs[0].other[0]
        column_of = {unit: i for i, unit in enumerate(self._units[number][site])}
        columns = torch.tensor([column_of[pair.other[1]] for pair in pairs], device=self._device)
        rows_BPQ = torch.stack([seen[image][site] for image in images])[:, :, columns]
        scale = scale_of(self._moments, (OnGrid(number, pair.other, target) for pair in pairs))
        z_BPQ, _ = standardised(resized(rows_BPQ, self._grid(pairs[0]), target), scale)
        falls = [self._partners[number].absolute and pair.r < 0 for pair in pairs]
        return z_BPQ * torch.tensor([-1.0 if fall else 1.0 for fall in falls], device=self._device)

    def _grid(self, pair: Pair) -> Grid:
        return own_grid(self._models[pair.partner].facts, pair.other[0])

    def _target(self, pair: Pair) -> Grid:
        return common_grid(own_grid(self._generator, pair.own[0]), self._grid(pair), self._partners[pair.partner].grid)

    def _keys(self, pair: Pair) -> tuple[OnGrid, OnGrid]:
        target = self._target(pair)
        return OnGrid(None, pair.own, target), OnGrid(pair.partner, pair.other, target)

    # -------------------------------------------------------------- what a member sees

    def _look(self, number: int, rows: tuple[int, int], problems: list[Problem]) -> Seen:
        """The maps of its paired units on every image that gave all of them; problems takes the others in."""
        seen: Seen = defaultdict(dict)
        forward = IndexForward(self._models[number], self._partners[number].forward, self._threads)
        sites = {site: Site.parse(site) for site in self._units[number]}
        for batch in forward.run(self._inputs, [rows], list(sites.values())):
            problems += batch.problems
            for name, site in sites.items() if batch.out is not None else ():
                assert batch.out is not None
                found, unusable = usable_rows(batch.out, site, batch.images, "fp32")
                problems += self._set_aside(number, unusable)
                for image, values_PQ in self._values(number, name, found):
                    seen[image][name] = values_PQ
        self.notes += forward.notes
        return {image: maps for image, maps in seen.items() if len(maps) == len(sites)}

    def _set_aside(self, number: int, unusable: Sequence[SetAside]) -> Iterator[Problem]:
        """Images without numbers at a site. Raises NonFiniteActivation."""
        partner = self._partners[number]
        for aside in unusable:
            if partner.forward.params["on_nonfinite"] == "stop":
                raise stop_for(aside, partner.name)
            yield from nonfinite(aside._replace(problem=f"{partner.name}: {aside.problem}"))

    def _values(self, number: int, site: str, rows: Rows | None) -> Iterator[tuple[int, Tensor]]:
        """image_index and maps [P, Q] of neurons as they are, or of latents of the member's SAE."""
        if rows is None:
            return
        units_Q = torch.tensor(self._units[number][site], device=rows.values.device)
        if number in self._saes:
            codes = self._saes[number].encode(rows.values.flatten(0, 1))
            values_BPQ = codes.at(units_Q.expand(len(codes), -1)).unflatten(0, rows.values.shape[:2])
        else:
            values_BPQ = rows.values[:, :, units_Q]
        yield from ((image.image_index, x) for image, x in zip(rows.images, values_BPQ.float(), strict=True))

    # -------------------------------------------------------------- opening

    def _check_units(self) -> None:
        check_units(self._generator.model, widths_of(self._generator), (pair.own for pair in self._pairs))
        for number, units in self._units.items():
            widths = widths_of(self._models[number].facts)
            if number in self._saes:  # its units are latents, at one site
                widths = {site_path(site): self._saes[number].config.latents for site in units}
            check_units(self._partners[number].name, widths, ((site, max(of)) for site, of in units.items()))

    def _open(self, number: int) -> VisionModel:
        return open_model(self._partners[number].forward, self._inputs, self._device, ())

    def _load_sae(self, stage: str) -> Sae:
        return load_sae(self._inputs.published(stage, WEIGHTS)).to(self._device)


def own_grid(facts: ModelFacts, site: str) -> Grid:
    """The grid of a map site, which mining has found to have one."""
    grid = facts.site(site_path(site)).grid
    assert grid is not None, site
    return grid


def _units_by_site(pairs: Sequence[Pair]) -> dict[int, dict[str, list[int]]]:
    """Paired units of each member that guides, by site, ascending and each once."""
    found: dict[int, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for pair in pairs:
        found[pair.partner][pair.other[0]].add(pair.other[1])
    return {n: {site: sorted(units) for site, units in sites.items()} for n, sites in found.items()}
