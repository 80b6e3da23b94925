"""Who takes part in a comparison of models: neurons of a model or latents of an SAE, decided at planning; loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from jobs.activations import Forward, get_facts, make_forward
from jobs.protocol import Cell, Known
from jobs.sae_tokens import whole_site
from schemas.base import Frozen
from schemas.errors import BadSpec, TooFewImages, UnknownSite
from schemas.models import ModelFacts, resolve_sites
from schemas.plans import StageSpec
from schemas.refs import ImageSetRef, Site
from schemas.rosetta_specs import MineRosettaSpec

GENERATOR = "generator"
"""The family of models that draw images."""
LEAST_SAMPLES = 30
"""Images times positions, below which r says nothing."""
USUAL_LATENTS = 1 << 15
"""Assumed of an SAE whose width is not known before it is read, for sizes of tiles, which decide no result."""
_RATES = {"cpu": 4e10, "gpu": 5e13}
"""FLOP per second of a forward pass, for one CPU or one GPU: what it costs to compute maps again."""
_DISK = {"write": 1e9, "read": 2e9}
"""Bytes per second of scratch space."""


class MemberSite(Frozen):
    """One site of a member: its map, its units, what the site itself has, and its place in the model (0 first, 1 last)."""

    site: str
    grid: tuple[int, int]
    width: int
    channels: int
    depth: float


class Member(Frozen):
    """Neurons of one model at several sites, or the latents of one SAE; units are numbered site by site, in this order.

    Sites of one grid stand together. sae: the stage that made it, whose latents are the units of the one site. cached:
    whether a node keeps its maps.
    """

    forward: Forward
    sites: tuple[MemberSite, ...]
    sae: str | None = None
    cached: bool = False

    @property
    def model(self) -> str:
        """The model ref."""
        return self.forward.model

    @property
    def name(self) -> str:
        """For people: the model, and the SAE if its latents are meant."""
        return self.model if self.sae is None else f"{self.model} sae:{self.sae[:8]}"

    @property
    def unit_kind(self) -> str:
        """neurons or features."""
        return "neurons" if self.sae is None else "features"

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Its sites by grid, in order."""
        found, first = [], 0
        for grid, sites in groupby(self.sites, key=lambda site: site.grid):
            together = tuple(sites)
            found.append(Group(grid, together, first))
            first += found[-1].width
        return tuple(found)

    @cached_property
    def width(self) -> int:
        """Units in all; of an SAE that is not read yet, what is assumed."""
        return sum(site.width for site in self.sites)

    def of_width(self, latents: int) -> Member:
        """The same with the latents that its SAE has, once these are known."""
        site = self.sites[0].model_copy(update={"width": latents})
        return Member(
            forward=self.forward, sites=(site,), sae=self.sae, cached=self.cached
        )  # a copy would keep the old sums

    @cached_property
    def map_numbers(self) -> int:
        """Numbers in the maps of one image."""
        return sum(site.width * site.grid[0] * site.grid[1] for site in self.sites)


@dataclass(frozen=True)
class Group:
    """Sites of one grid of one member: its units are `first` to `first + width` of the member's."""

    grid: tuple[int, int]
    sites: tuple[MemberSite, ...]
    first: int

    @cached_property
    def width(self) -> int:
        """Units."""
        return sum(site.width for site in self.sites)

    @property
    def positions(self) -> int:
        """Positions of its maps."""
        return self.grid[0] * self.grid[1]


def find_members(cell: Cell, known: Known, model: str) -> tuple[Member, ...]:
    """What takes part of one model: its neurons, then the SAEs of it that are read.

    Raises:
        NotInspected: the model or the image set is not known yet.
        BadSpec: it has no map at the sites that are asked for, sees another view of the images than the others, or is a
            generator that did not draw them.
        TooFewImages: r of so few says nothing.
    """
    spec = cell.spec
    assert isinstance(spec, MineRosettaSpec)
    cell = replace(cell, model=model)
    facts = get_facts(cell, known)
    _check_view(cell, facts, known)
    forward = make_forward(cell, known)
    found = []
    if "neurons" in spec.units:
        found.append(Member(forward=forward, sites=_by_grid(_neurons(cell, facts))))
    if "features" in spec.units:
        read = [plan.stage for plans in cell.reads.values() for plan in plans if plan.stage.output == "sae"]
        saes = {stage.digest: stage for stage in read if stage.subject == model}
        found += [Member(forward=forward, sites=(_latents(cell, facts, sae),), sae=sae.digest) for sae in saes.values()]
    for member in found:
        _check_size(cell, member)
    return tuple(member.model_copy(update={"cached": _is_cached(cell, facts, member)}) for member in found)


def _check_view(cell: Cell, facts: ModelFacts, known: Known) -> None:
    spec, ref = cell.spec, ImageSetRef.parse(cell.images.ref) if cell.images else None
    assert isinstance(spec, MineRosettaSpec) and ref is not None
    if facts.family == GENERATOR:
        if ref.source != "generated" or not ref.location.startswith(f"{facts.model},"):
            raise BadSpec(
                f"images: {facts.model} draws images and reads none, found {ref}; give images: {{ref: "
                f"'generated:{facts.model},seed=0,n=1600'}}, which all other models then see"
            )
    elif not facts.sees_whole(spec.geometry):
        raise BadSpec(
            f"geometry: model: {facts.model} cuts off what others see, so their maps are shifted against each other; use "
            "geometry: square"
        )
    elif spec.geometry == "model":
        _check_one_resize(facts, [known.models[model] for model in cell.zoo if model in known.models])


def _check_one_resize(facts: ModelFacts, others: Sequence[ModelFacts]) -> None:
    """Nothing, if models that cut nothing off a square see the same part of any other image. Raises BadSpec."""
    for other in others:
        if GENERATOR not in (facts.family, other.family) and other.geometry.resize != facts.geometry.resize:
            raise BadSpec(
                f"geometry: model: {facts.model} resizes by {facts.geometry.resize}, {other.model} by {other.geometry.resize}, so of "
                "images that are not square they see different parts; use geometry: square"
            )


def _neurons(cell: Cell, facts: ModelFacts) -> list[MemberSite]:
    """The maps of the sites that are asked for, or of those that are usual in its family."""
    spec = cell.spec
    assert isinstance(spec, MineRosettaSpec)
    maps = [site.path for site in facts.sites if site.grid is not None and site.layout in ("tokens", "map")]
    asked = spec.sites or (("mlp_act.*",) if any(p.startswith("mlp_act.") for p in maps) else ("stage.*",))
    if facts.family == GENERATOR and not spec.sites:
        asked = tuple(maps)
    found = [member for text in asked for member in matching(facts, text)]
    unique = {member.site: member for member in found}
    if not unique:
        names = ", ".join(dict.fromkeys(path.split(".")[0] for path in maps)) or "none"
        raise BadSpec(
            f"sites: {', '.join(asked)}: {facts.model} (family {facts.family}) has no map there; its maps are {names}; add one "
            "of them to sites, which each model takes its own of, or take the model out"
        )
    return list(unique.values())


def matching(facts: ModelFacts, text: str) -> Iterator[MemberSite]:
    """The maps of a model that a site text names; none if it has no such site, or none with a patch grid."""
    written = Site.parse(text)
    try:
        sites = resolve_sites(facts, [Site(path=written.path)])
    except UnknownSite:
        return
    for site in sites:
        known = facts.site(site.path)
        if known.grid is not None and known.layout in ("tokens", "map"):
            tokens = "map" if known.layout == "map" else "patch"
            yield MemberSite(
                site=f"{site.path}@{tokens}",
                grid=known.grid,
                width=known.width,
                channels=known.width,
                depth=facts.depths[site.path],
            )


def _latents(cell: Cell, facts: ModelFacts, sae: StageSpec) -> MemberSite:
    trained_on = whole_site(facts, str(sae.params["site"]))
    found = [member for member in matching(facts, trained_on) if member.site == trained_on]
    if not found:
        raise BadSpec(
            f"stages.{cell.name}.reads: the SAE {sae.digest[:8]} is of {trained_on}, which is no map of {facts.model}; read SAEs "
            "of patches or maps, or compare neurons alone by units: neurons"
        )
    settings = sae.params.get("sae")
    latents = settings.get("latents") if isinstance(settings, dict) else None
    return found[0].model_copy(update={"width": latents or USUAL_LATENTS})


def _by_grid(sites: Sequence[MemberSite]) -> tuple[MemberSite, ...]:
    """Sites of one grid together, grids and sites in the order in which they first come."""
    grids = list(dict.fromkeys(site.grid for site in sites))
    return tuple(sorted(sites, key=lambda site: grids.index(site.grid)))


def _check_size(cell: Cell, member: Member) -> None:
    spec = cell.spec
    assert isinstance(spec, MineRosettaSpec)
    for site in member.sites:
        if min(site.grid) < 2:
            raise BadSpec(
                f"sites: {site.site} of {member.model} has a grid of {site.grid[0]}x{site.grid[1]}, which cannot be interpolated; "
                "leave it out"
            )
    rows, least = member.forward.rows, min(site.grid[0] * site.grid[1] for site in member.sites)
    if rows < 2 or rows * least < LEAST_SAMPLES:
        raise TooFewImages(
            f"images: {rows} of {cell.images.ref if cell.images else ''} with {least} positions at the coarsest site of "
            f"{member.model}: expected at least 2 images and {LEAST_SAMPLES} values of a unit to correlate"
        )
    if max(spec.k) > member.width - 1:
        raise BadSpec(f"k: {max(spec.k)} neighbours of {member.width} units of {member.name}; take a smaller k")


def _is_cached(cell: Cell, facts: ModelFacts, member: Member) -> bool:
    """Whether its maps are kept on each node: by what the spec says, else by what is faster and fits."""
    spec = cell.spec
    assert isinstance(spec, MineRosettaSpec)
    if spec.maps != "auto":
        return spec.maps == "cache"
    again, kept = costs_of_maps(cell, facts, member)
    return kept < again and map_bytes(member) <= spec.cache_gb * 2**30 / max(1, len(cell.zoo))


def map_bytes(member: Member) -> int:
    """Scratch space of the tapped tensors of all images; codes of an SAE are made again from what it reads."""
    return 4 * member.forward.rows * sum(site.channels * site.grid[0] * site.grid[1] for site in member.sites)


def costs_of_maps(cell: Cell, facts: ModelFacts, member: Member) -> tuple[float, float]:
    """Seconds that the maps of one member take over all pairs of the zoo: computed again each time, or kept."""
    times = 3 + 3 * len(cell.zoo)  # statistics twice, the dictionary; and each pair, shifted, and once more in float64
    device = "gpu" if cell.resources.gpus > 0 else "cpu"
    rate = _RATES[device] * (max(cell.resources.gpus, 0.1) if device == "gpu" else cell.resources.cpus)
    once = member.forward.rows * facts.flops / rate
    size = map_bytes(member)
    return times * once, once + size / _DISK["write"] + (times - 1) * size / _DISK["read"]
