"""What the maps of a generator's units should be on an image: those of their buddies in models that read it, computed once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from jobs.forward import IndexForward
from jobs.invert.pairs import Moments, OnGrid, Pair, Place, check_units, read_moments, scale_of
from jobs.invert.partners import Partner
from jobs.models import open_model
from jobs.protocol import Inputs
from jobs.rows import stop_for, usable_rows
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

Seen = dict[int, dict[Place, Tensor]]
"""What one member has of each image, by image_index: maps [P] of some of its units."""


class Targets:
    """The members that guide and their pairs with the generator; `notes` says what people should know."""

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
            BadUnits: a unit that a model does not have. NothingToGuide: statistics are missing.
        """
        self._partners, self._inputs, self._device, self._threads = partners, inputs, device, threads
        self._generator = generator
        self._places: dict[int, list[Place]] = defaultdict(list)
        for pair in pairs:
            self._places[pair.partner].append(pair.other)
        self._models = {number: self._open(number) for number in self._places}
        self._saes = {n: self._load_sae(sae) for n in self._places if (sae := partners[n].sae) is not None}
        check_units(generator, (pair.own for pair in pairs))
        for number, places in self._places.items():
            if partners[number].sae is None:
                check_units(self._models[number].facts, places)
        self._groups: dict[tuple[str, Grid], list[Pair]] = defaultdict(list)
        for pair in pairs:
            self._groups[pair.own[0], self._target(pair)].append(pair)
        self._moments: Moments = read_moments(inputs, partners, (key for pair in pairs for key in self._keys(pair)))
        self.notes: list[str] = []

    def find(self, start: int, stop: int) -> tuple[list[int], tuple[Wanted, ...]]:
        """Images among rows [start, stop) of the index that every member could use, and their wanted maps, in that order.

        Raises:
            NonFiniteActivation: an image gives no numbers, and the mined stage stops there.
        """
        seen = {number: self._look(number, places, (start, stop)) for number, places in self._places.items()}
        images = sorted(set.intersection(*(set(of) for of in seen.values())))
        if not images:
            return [], ()
        return images, tuple(self._wanted(*key, pairs, images, seen) for key, pairs in self._groups.items())

    # -------------------------------------------------------------- pairs of one site and grid

    def _wanted(
        self, site: str, target: Grid, pairs: Sequence[Pair], images: Sequence[int], seen: dict[int, Seen]
    ) -> Wanted:
        keys = [self._keys(pair) for pair in pairs]
        units = torch.tensor([pair.own[1] for pair in pairs], device=self._device)
        own = Guides(
            site, own_grid(self._generator, site), target, units, scale_of(self._moments, (a for a, _ in keys))
        )
        maps = []
        for pair, (_, key) in zip(pairs, keys, strict=True):
            rows_BP1 = torch.stack([seen[pair.partner][image][pair.other] for image in images])[:, :, None]
            on_target = resized(rows_BP1, self._grid(pair), target)
            z_BP1, _ = standardised(on_target, scale_of(self._moments, [key]))
            maps.append(-z_BP1 if self._partners[pair.partner].signed and pair.r < 0 else z_BP1)
        return Wanted(own, torch.cat(maps, 2))

    def _grid(self, pair: Pair) -> Grid:
        return own_grid(self._models[pair.partner].facts, pair.other[0])

    def _target(self, pair: Pair) -> Grid:
        return common_grid(own_grid(self._generator, pair.own[0]), self._grid(pair), self._partners[pair.partner].grid)

    def _keys(self, pair: Pair) -> tuple[OnGrid, OnGrid]:
        target = self._target(pair)
        return OnGrid(None, pair.own, target), OnGrid(pair.partner, pair.other, target)

    # -------------------------------------------------------------- what a member sees

    def _look(self, number: int, places: Collection[Place], rows: tuple[int, int]) -> Seen:
        """The maps of its paired units on every image that gave all of them."""
        units = {site: sorted({unit for of, unit in places if of == site}) for site, _ in places}
        seen: Seen = defaultdict(dict)
        for site, image, values_PQ in self._maps(number, {site: torch.tensor(of) for site, of in units.items()}, rows):
            for unit, map_P in zip(units[site], values_PQ.T, strict=True):
                seen[image][site, unit] = map_P
        return {image: maps for image, maps in seen.items() if len(maps) == len(set(places))}

    def _maps(self, number: int, units: dict[str, Tensor], rows: tuple[int, int]) -> Iterator[tuple[str, int, Tensor]]:
        """(site, image_index, maps [P, Q] of its units) of every image."""
        member, parsed = self._partners[number], {site: Site.parse(site) for site in units}
        forward = IndexForward(self._models[number], member.forward, self._threads)
        for batch in forward.run(self._inputs, [rows], list(parsed.values())):
            if batch.out is None:
                continue
            for name, site in parsed.items():
                found, unusable = usable_rows(batch.out, site, batch.images, "fp32")
                if unusable and member.forward.params["on_nonfinite"] == "stop":
                    raise stop_for(unusable[0], member.name)
                if found is not None:
                    values_BPQ = self._units(number, found.values)[:, :, units[name]]
                    yield from ((name, of.image_index, x) for of, x in zip(found.images, values_BPQ, strict=True))
        self.notes += forward.notes

    def _units(self, number: int, rows_BPD: Tensor) -> Tensor:
        """Neurons as they are, or the latents of the member's SAE."""
        if number not in self._saes:
            return rows_BPD.float()
        return self._saes[number].encode(rows_BPD.flatten(0, 1)).dense().unflatten(0, rows_BPD.shape[:2]).float()

    def _open(self, number: int) -> VisionModel:
        return open_model(self._partners[number].forward, self._inputs, self._device, ())

    def _load_sae(self, stage: str) -> Sae:
        return load_sae(self._inputs.published(stage, WEIGHTS)).to(self._device)


def own_grid(facts: ModelFacts, site: str) -> Grid:
    """The grid of a map site, which mining has found to have one."""
    grid = facts.site(site_path(site)).grid
    assert grid is not None, site
    return grid
