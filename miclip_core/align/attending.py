"""Whose class token looks at the patches of a site, from what is known of a model without running it; loads no torch."""

from __future__ import annotations

from schemas.errors import UnknownSite, UnsupportedBlock
from schemas.models import ModelFacts
from schemas.refs import Sample, Site


def attending_block(facts: ModelFacts, site: Site) -> int:
    """The block behind the one whose output a canonical site is: the first that sees what replaces its patches.

    Raises:
        UnsupportedBlock: no class token.
        UnknownSite: not the patches of the output of a block that another one follows.
    """
    if not facts.has_cls:
        raise UnsupportedBlock(f"{facts.model} has no class token in transformer blocks, so no attention of one")
    name, _, number = site.path.partition(".")
    reduced = site.reduce is not None and not isinstance(site.reduce, Sample)
    if name != "resid_post" or int(number) + 1 >= facts.n_blocks or site.tokens not in ("patch", "all") or reduced:
        raise UnknownSite(
            f"{site}: attention maps need resid_post.l@patch with l from 0 to {facts.n_blocks - 2} of {facts.model}, so "
            "that a block follows"
        )
    return int(number) + 1
