"""From tokens of a vision tower to what the language model reads instead of words, by the library's own projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from miclip_core.zoo.stand_in import project
from schemas.errors import GeometryMismatch, NonFiniteActivation, UnsupportedBlock

if TYPE_CHECKING:
    from miclip_core.explain.vlm import Vlm


def soft_tokens(vlm: Vlm, tokens_RTD: Tensor) -> Tensor:
    """What the language model sees of R images, [R, image_tokens, width of the language model].

    tokens: the whole tensor of the site `vlm.language.reads`, prefix tokens included. The library's own code chooses,
    pools and projects them; only its vision tower is replaced, by one that hands over these tokens.

    Raises:
        GeometryMismatch: the tokens are not those of this site. NonFiniteActivation: a soft token is NaN or infinite.
        HookNeverFired, UnsupportedBlock: the library did not run its tower once, or looked elsewhere than at this site.
    """
    _check_tokens(vlm, tokens_RTD)
    with torch.no_grad():
        soft_RTE, place = project(vlm.module, tokens_RTD, vlm.tower.facts.n_blocks)
    _check_place(vlm, place)
    return _checked(vlm, soft_RTE)


def _check_place(vlm: Vlm, place: int | None) -> None:
    """Refuse a look at another place than the facts name; None is the tower's end."""
    last = f"resid_post.{vlm.tower.facts.n_blocks - 1}"
    names = ("lnf_out", last) if place is None else (f"resid_post.{place}",)
    if vlm.language.reads not in names:
        raise UnsupportedBlock(
            f"the language model reads {' or '.join(names)} of its vision tower, and {vlm.language.reads} is what its facts "
            "say; inspect the model again with this version of transformers"
        )


def _check_tokens(vlm: Vlm, tokens_RTD: Tensor) -> None:
    known = vlm.tower.facts.site(vlm.language.reads)
    if tokens_RTD.ndim != 3 or tuple(tokens_RTD.shape[1:]) != (known.positions, known.width):
        raise GeometryMismatch(
            f"tokens have shape {tuple(tokens_RTD.shape)}, expected [images, {known.positions}, {known.width}]: all of "
            f"{known.path}"
        )


def _checked(vlm: Vlm, soft_RTE: Tensor) -> Tensor:
    expected = (vlm.language.image_tokens, vlm.language.width)
    if tuple(soft_RTE.shape[1:]) != expected:
        raise GeometryMismatch(
            f"the language model is given {tuple(soft_RTE.shape[1:])} numbers per image, expected {expected}"
        )
    if not bool(torch.isfinite(soft_RTE).all()):
        rows = (~torch.isfinite(soft_RTE).all(dim=2).all(dim=1)).nonzero().flatten().tolist()
        raise NonFiniteActivation(
            f"what the language model reads is not finite for images {rows} of this batch ({soft_RTE.dtype}); take a "
            "smaller alpha or dtype fp32"
        )
    return soft_RTE
