"""Which tokens an SAE stage is about, decided at planning; loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydantic import JsonValue

from jobs.activations import Forward, forward_effort, forward_of, get_facts, make_forward
from jobs.protocol import Cell, Known
from schemas.base import Frozen, canonical_json
from schemas.errors import BadSpec
from schemas.models import ModelFacts, resolve_sites, rows_per_image, selected_range, site_width
from schemas.plans import Plan, StageSpec, load_json
from schemas.refs import Sample, Site
from schemas.sae_specs import TokensCell


class SiteTokens(Frozen):
    """The tokens of one canonical site: those of a stored `activations` stage, or computed as they are needed."""

    forward: Forward
    site: str
    round_to: str
    stored: bool

    @property
    def stage(self) -> StageSpec:
        """The stage of activations, whether anything stores it or not."""
        return self.forward.stage(self.site, self.round_to)

    @property
    def source(self) -> str:
        """`table` or `live`."""
        return "table" if self.stored else "live"

    def width(self, facts: ModelFacts) -> int:
        """Length of one token."""
        return site_width(facts, Site.parse(self.site))

    def per_image(self, facts: ModelFacts) -> int:
        """Tokens that one image gives."""
        return rows_per_image(facts, Site.parse(self.site))


def patch_positions(facts: ModelFacts, tokens: SiteTokens) -> dict[str, JsonValue]:
    """Positions of an image, the token number of its first patch, the patch grid, and whether the grid shows the whole image."""
    site = Site.parse(tokens.site)
    known = facts.site(site.path)
    positions = tokens.per_image(facts)
    has_grid = known.grid is not None and site.reduce is None and site.tokens in ("patch", "map", "all")
    first, _ = selected_range(known, site.tokens)
    return {
        "positions": positions,
        "first_patch": known.prefix - first if has_grid else 0,
        "grid": list(known.grid) if has_grid and known.grid else None,
        "whole_view": facts.sees_whole(str(tokens.forward.params["geometry"])),
    }


def tokens_of(plan: Plan) -> SiteTokens:
    """The tokens of a plan that has params `site` and `round_to`, and `forward` and `source` as effort."""
    return SiteTokens(
        forward=forward_effort(plan),
        site=str(plan.stage.params["site"]),
        round_to=str(plan.stage.params["round_to"]),
        stored=plan.effort["source"] == "table",
    )


def planned_tokens(plan: Plan) -> SiteTokens:
    """The tokens of a plan that states them whole, as effort `tokens`."""
    return load_json(SiteTokens, canonical_json(plan.effort["tokens"]))


def latents_of(sae: StageSpec | None) -> int | None:
    """How many an SAE has that is trained here; what one has that is imported is known when its file is read."""
    settings = sae.params.get("sae") if sae is not None else None
    return int(str(settings["latents"])) if isinstance(settings, dict) and "latents" in settings else None


def find_tokens(cell: Cell, known: Known) -> tuple[SiteTokens, ...]:
    """The tokens of every site of a cell.

    With an extract stage among what it reads they are stored ones, and `sites` choose among them; else they come from a
    live forward pass over its images.

    Raises:
        NotInspected: the model or the image set is not known yet.
        BadSpec: a stage that it reads stores no activations, or none at the sites that are asked for.
        UnknownSite: this model has no such site.
    """
    spec = cell.spec
    assert isinstance(spec, TokensCell)
    facts = get_facts(cell, known)
    if not any(plan.stage.kind == "extract" for plans in cell.reads.values() for plan in plans):
        forward = make_forward(cell, known)
        sites = resolve_sites(facts, spec.sites)
        return tuple(
            SiteTokens(forward=forward, site=str(site), round_to=spec.round_to, stored=False) for site in sites
        )
    return find_stored(cell, facts, spec.sites)


def find_stored(cell: Cell, facts: ModelFacts, sites: Sequence[str]) -> tuple[SiteTokens, ...]:
    """The tokens of every site of the extract stages that a cell reads, or of those that `sites` choose.

    Raises:
        BadSpec, UnknownSite: as `find_tokens`.
    """
    read = _extracted(cell)
    if not read:
        raise BadSpec(f"stages.{cell.name}.reads: no activations of {cell.model}; read an extract stage that has them")
    holding = {name: plans for name, plans in read.items() if any(p.stage.output == "activations" for p in plans)}
    stored = [tokens for name, plans in (holding or read).items() for tokens in _stored(cell, name, plans)]
    what = f"the stored activations of {facts.model}"
    wanted = choose_sites(f"stages.{cell.name}", what, facts, sites, (tokens.site for tokens in stored))
    return tuple(tokens for tokens in stored if tokens.site in wanted)


def choose_sites(where: str, what: str, facts: ModelFacts, asked: Sequence[str], there: Iterable[str]) -> set[str]:
    """Of the canonical sites that are there those that texts name, where `*` takes what there is; all if nothing is asked for.

    where: the stage that asks. what: whose sites they are, for people.

    Raises:
        BadSpec: a text names none of them. UnknownSite: it names none of the model.
    """
    sites = dict.fromkeys(there)
    wanted = set() if asked else set(sites)
    for text in asked:
        found = {str(site) for site in resolve_sites(facts, [text])} & sites.keys()
        if not found:
            raise BadSpec(f"{where}.sites: {text}: not among {what}; there are {', '.join(sites)}")
        wanted |= found
    return wanted


def whole_site(facts: ModelFacts, trained_on: str) -> str:
    """The site of an SAE with all tokens of its kind, of which training may have seen a sample. Raises UnknownSite."""
    site = Site.parse(trained_on)
    whole = str(site.model_copy(update={"reduce": None})) if isinstance(site.reduce, Sample) else str(site)
    resolve_sites(facts, [whole])
    return whole


def find_whole(cell: Cell, site: str) -> SiteTokens | None:
    """The tokens of a whole site: those that a read stage stores, else from the forward pass of one that was read.

    None if no stage of activations or embeddings is read.
    """
    read = [plan for plans in _extracted(cell).values() for plan in plans]
    vectors = [plan for plan in read if plan.stage.output in ("activations", "embeddings")]
    stored = [plan for plan in vectors if plan.stage.output == "activations" and plan.stage.params["site"] == site]
    for plan in stored or vectors:
        to = str(plan.stage.params["round_to"])
        return SiteTokens(forward=forward_of(plan), site=site, round_to=to, stored=bool(stored))
    return None


def _extracted(cell: Cell) -> dict[str, tuple[Plan, ...]]:
    """The extract stages that a cell reads; other kinds bring stages of extract with them, such as align those of its CLIP."""
    return {
        name: plans for name, plans in cell.reads.items() if plans and all(p.stage.kind == "extract" for p in plans)
    }


def _stored(cell: Cell, name: str, plans: Sequence[Plan]) -> Iterator[SiteTokens]:
    found = [plan for plan in plans if plan.stage.output == "activations"]
    if not found:
        has = ", ".join(sorted({plan.stage.output for plan in plans}))
        raise BadSpec(
            f"stages.{cell.name}.reads: {name} stores {has} of {cell.model}; expected activations; add activations to "
            f"stages.{name}.outputs"
        )
    for plan in found:
        params = plan.stage.params
        yield SiteTokens(
            forward=forward_of(plan), site=str(params["site"]), round_to=str(params["round_to"]), stored=True
        )
