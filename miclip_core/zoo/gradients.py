"""Gradients of a scalar of the output with respect to any site that can be edited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from miclip_core.zoo.edits import Edit
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.select import select
from miclip_core.zoo.start import CachedBlock
from schemas.errors import UnknownSite
from schemas.refs import Site


class SiteGradient(NamedTuple):
    """A site's value and the gradient with respect to it, in the same selected form."""

    value: Tensor
    gradient: Tensor


def activation_gradient(
    model: VisionModel,
    images_BCIJ: Tensor | None,
    sites: Sequence[str | Site],
    scalar: Callable[[Tensor], Tensor],
    *,
    of: str = "embedding",
    edits: Sequence[Edit] = (),
    start: CachedBlock | None = None,
) -> dict[str, SiteGradient]:
    """d scalar / d site, per image: images do not interact, so one backward pass serves the whole batch.

    scalar: the tensor of site `of` (embedding [B, E]) -> one number, or one per image [B].
    sites: whole or with `@tokens`; a reduction has no gradient of its own. The graph starts at the earliest site.

    Raises:
        UnknownSite: a site that cannot be edited, has a reduction, or that `of` does not depend on.
    """
    asked = model.sites(sites)
    for site in asked:
        if site.reduce is not None:
            raise UnknownSite(f"{site}: ask for the gradient of {site.path} and reduce it afterwards")
    seen: dict[str, Tensor] = {}

    def watch(path: str) -> Edit:
        def mark(x: Tensor) -> Tensor:
            # The first site of the pass becomes a leaf; later ones hang in its graph.
            seen[path] = x.clone() if x.requires_grad else x.detach().clone().requires_grad_(True)
            return seen[path]

        return Edit(Site(path=path), "fn", mark)

    watched = [watch(path) for path in dict.fromkeys(site.path for site in asked)]
    with torch.enable_grad():
        out = model.run(images_BCIJ, [of], [*edits, *watched], grad=True, start=start)
        paths = list(seen)
        total = scalar(next(iter(out.values()))).sum()
        leaves = [seen[path] for path in paths]
        gradients = (
            torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None] * len(paths)
        )
    by_path: dict[str, Tensor] = {}
    for path, gradient in zip(paths, gradients):
        if gradient is None:
            raise UnknownSite(f"{path}: {of} does not depend on it, so there is no gradient; ask for an earlier site")
        by_path[path] = gradient
    return {
        str(site): SiteGradient(
            select(model.facts.site(site.path), site, seen[site.path].detach()),
            select(model.facts.site(site.path), site, by_path[site.path]),
        )
        for site in asked
    }
