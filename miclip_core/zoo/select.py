"""From a whole site tensor to what a site asks for: token selectors, reductions, samples, and the table form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from miclip_core.shuffle import permute
from miclip_core.zoo.sitemap import promote
from schemas.errors import BadSite
from schemas.models import Layout, ModelFacts, SiteFacts, positions_selected, resolve_sites, selected_range
from schemas.refs import Sample, Site, Tokens

REDUCED = -1
"""The position of a row that belongs to no single position: a vector, a mean or a maximum."""


def position_axis(facts: SiteFacts) -> int | None:
    """Where the positions of a whole tensor are: axis 1 of tokens, 2 of heads and of (flattened) maps."""
    return {"tokens": 1, "heads": 2, "map": 2, "vector": None}[facts.layout]


def whole_site(facts: SiteFacts) -> Site:
    """All of a site: `@all` of tokens and heads, `@map` of a map, a vector as it is."""
    tokens: dict[Layout, Tokens | None] = {"tokens": "all", "heads": "all", "map": "map", "vector": None}
    return Site(path=facts.path, tokens=tokens[facts.layout])


def one_site(facts: ModelFacts, site: str | Site) -> Site:
    """The one canonical site that is named and whose tokens can be replaced.

    Raises:
        BadSite: several sites, or one reduced by a mean or maximum. UnknownSite: the model has none of this name.
    """
    found = resolve_sites(facts, [site])
    if len(found) != 1:
        raise BadSite(f"{site}: names {len(found)} sites of {facts.model}; give one of them, such as {found[0]}")
    if found[0].reduce is not None and not isinstance(found[0].reduce, Sample):
        tokens = found[0].model_copy(update={"reduce": None})
        raise BadSite(
            f"{found[0]}: a {found[0].reduce} over tokens is no part of the forward pass, so nothing can be put in its place; "
            f"take the site without :{found[0].reduce} ({tokens})"
        )
    return found[0]


def select(facts: SiteFacts, site: Site, whole: Tensor, image_ids: Sequence[str] | None = None) -> Tensor:
    """Apply the selector and reduction of `site` to the whole tensor of one batch.

    Token sites [B, T, *shape]: `@cls` [B, *shape], `@reg`, `@patch`, `@all` keep the axis, `@map` [B, *shape, h, w].
    Maps [B, C, h, w] stay maps. `:mean` and `:max` drop the positions, `:sample(n,seed)` gives [B, n, *shape] in the
    ascending order of `sample_positions`. Head sites keep heads first: [B, H, positions, *rest].
    The result never shares memory with a part of `whole`, so `whole` can be released.

    Raises:
        ValueError: a sample was asked for and image_ids are missing.
    """
    axis = position_axis(facts)
    if axis is None:
        return whole
    flat = whole.flatten(2) if facts.layout == "map" else whole
    first, last = selected_range(facts, site.tokens)
    kept = flat.narrow(axis, first, last - first)
    if isinstance(site.reduce, Sample):
        return _sample(facts, site, kept, axis, image_ids)
    if site.reduce == "mean":
        return promote(kept).mean(axis).to(kept.dtype)
    if site.reduce == "max":
        return kept.amax(axis)
    if site.tokens == "cls":
        return kept.squeeze(axis).clone()
    if site.tokens == "map":
        return whole if facts.layout == "map" else _as_map(facts, kept, axis)
    return kept if kept.shape == flat.shape else kept.clone()


def _as_map(facts: SiteFacts, kept: Tensor, axis: int) -> Tensor:
    assert facts.grid is not None, f"{facts.path} takes @map but has no grid"
    return kept.movedim(axis, -1).unflatten(-1, facts.grid).contiguous()


def _sample(facts: SiteFacts, site: Site, kept: Tensor, axis: int, image_ids: Sequence[str] | None) -> Tensor:
    assert isinstance(site.reduce, Sample)
    if image_ids is None or len(image_ids) != kept.shape[0]:
        raise ValueError(
            f"{site}: sampled positions depend on the image ids; give run(..., image_ids=...) one per image"
        )
    index_BN = torch.from_numpy(sampled(facts, site, image_ids)).to(kept.device)
    shape = [1] * kept.ndim
    shape[0], shape[axis] = index_BN.shape
    index = index_BN.reshape(shape).expand(*(n if i in (0, axis) else kept.shape[i] for i, n in enumerate(shape)))
    return kept.gather(axis, index)


def sampled(facts: SiteFacts, site: Site, image_ids: Sequence[str]) -> np.ndarray:
    """Which positions a sampled site keeps, int64 [B, n], counted within its token selection."""
    assert isinstance(site.reduce, Sample)
    count = positions_selected(facts, site.tokens)
    return np.stack([sample_positions(site.reduce.n, site.reduce.seed, name, count) for name in image_ids])


def sample_positions(n: int, seed: int, image_id: str, count: int) -> np.ndarray:
    """n of `count` positions without replacement, ascending: a pure function of its arguments."""
    return np.sort(permute(count, seed, image_id)[:n]).astype(np.int64)


def as_rows(
    facts: SiteFacts, site: Site, selected: Tensor, image_ids: Sequence[str] | None = None
) -> tuple[Tensor, np.ndarray]:
    """The table form of a selected tensor: rows [B, R, W], and positions [R] (or [B, R] for a sample).

    Positions count within the token selection (patch 0 is the first patch), row-major on maps; REDUCED where a row has
    no position. The width W is the flattened `shape` of the site.
    """
    batch, axis = selected.shape[0], position_axis(facts)
    if axis is None or site.reduce in ("mean", "max"):
        return selected.reshape(batch, 1, facts.width), np.array([REDUCED])
    if site.tokens == "cls":
        return selected.reshape(batch, 1, facts.width), np.array([0])
    if isinstance(site.reduce, Sample):
        assert image_ids is not None, f"{site}: sampled positions depend on the image ids"
        positions = sampled(facts, site, image_ids)
        rows = selected if axis == 1 else selected.movedim(axis, 1)
        return rows.reshape(batch, site.reduce.n, facts.width), positions
    if site.tokens == "map":
        rows = selected.flatten(-2).movedim(-1, 1)
    else:
        rows = selected.movedim(axis, 1)
    return rows.reshape(batch, rows.shape[1], facts.width), np.arange(rows.shape[1])
