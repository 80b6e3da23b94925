"""Scaling or shifting units of a site, neurons or features of an SAE, with another list of units for every image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from miclip_core.sae.codes import Codes
from miclip_core.sae.evaluate import check_site
from miclip_core.sae.sae import Sae
from miclip_core.zoo.edits import Edit, rows_of
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.select import one_site
from schemas.errors import BadUnits
from schemas.intervene import Change, ErrorMode
from schemas.refs import Site


class Held(Protocol):
    """The rows of one batch at a site, ready to be edited many times over."""

    @property
    def reference_BRW(self) -> Tensor:
        """What an intervention is measured against: the rows when nothing is changed."""
        ...

    def edited(self, units_BK: Tensor, change: Change) -> Tensor:
        """The rows [B, R, W] with the change made to the units of each image, int64 [B, K], -1 for none."""
        ...


class UnitKind(Protocol):
    """Neurons or features: what a unit of a site is."""

    @property
    def keeps_clean(self) -> bool:
        """Whether the reference is the model's own forward pass."""
        ...

    def count(self, model: VisionModel, site: str | Site) -> int:
        """How many units there are at the site. Raises: BadSite, UnknownSite; BadSae where features are of another site."""
        ...

    def hold(self, x_BRW: Tensor) -> Held:
        """Prepare the rows of a batch, tokens or positions of B images."""
        ...


# ---------------------------------------------------------------- neurons


@dataclass(frozen=True)
class Neurons:
    """Unit i is channel i of the site, at all selected positions (MICLIP, interventions on neurons)."""

    @property
    def keeps_clean(self) -> bool:
        """Always: an unchanged neuron leaves the pass as it was."""
        return True

    def count(self, model: VisionModel, site: str | Site) -> int:
        """The width of the site."""
        return model.facts.site(one_site(model.facts, site).path).width

    def hold(self, x_BRW: Tensor) -> HeldNeurons:
        """The rows themselves."""
        return HeldNeurons(x_BRW)


@dataclass(frozen=True, eq=False)
class HeldNeurons:
    """Rows whose channels are edited where they stand; every other value stays bit for bit."""

    reference_BRW: Tensor

    def edited(self, units_BK: Tensor, change: Change) -> Tensor:
        """See Held."""
        x_BRW = self.reference_BRW
        if change.is_identity:
            return x_BRW
        chosen = torch.zeros(len(x_BRW), x_BRW.shape[2] + 1, dtype=torch.bool, device=x_BRW.device)
        chosen.scatter_(1, units_BK % chosen.shape[1], True)  # -1 is the column too many
        return torch.where(chosen[:, None, :-1], _changed(x_BRW, change), x_BRW)


# ---------------------------------------------------------------- features


@dataclass(frozen=True, eq=False)
class Features:
    """Unit i is latent i of an SAE (MICLIP, interventions on features); codes are not made sparse again after an edit.

    error `keep`: h' = h + sum_i (f'_i - f_i) v_i, which leaves what the SAE does not reconstruct in place. error `drop`:
    h' = decode(f'), as the paper writes it; its reference is the reconstruction decode(f).
    """

    sae: Sae
    error: ErrorMode = "keep"

    @property
    def keeps_clean(self) -> bool:
        """Whether the error is kept."""
        return self.error == "keep"

    def count(self, model: VisionModel, site: str | Site) -> int:
        """The latents of the SAE, which must be one of this site."""
        check_site(model, site, self.sae)
        return self.sae.config.latents

    def hold(self, x_BRW: Tensor) -> HeldFeatures:
        """Encode the rows once; any number of edits then costs K vectors per row each. Raises: BadTokens."""
        x_ND = x_BRW.flatten(0, 1)
        codes = self.sae.encode(x_ND)
        reference = x_BRW if self.keeps_clean else self.sae.decode(codes, x_ND).reshape(x_BRW.shape)
        scale = (
            None if self.sae.config.input_norm == "none" else self.sae.decoder_scale(x_ND).unflatten(0, x_BRW.shape[:2])
        )
        return HeldFeatures(reference, codes, self.sae.W_dec, scale)


@dataclass(frozen=True, eq=False)
class HeldFeatures:
    """Rows, their codes, and the vectors [U, W] of the latents; scale [B, R, 1] where vectors are scaled per token."""

    reference_BRW: Tensor
    codes: Codes
    W_dec: Tensor
    scale_BR1: Tensor | None = None

    def edited(self, units_BK: Tensor, change: Change) -> Tensor:
        """See Held."""
        if change.is_identity:
            return self.reference_BRW
        R = self.reference_BRW.shape[1]
        f_BRK = self.codes.at(units_BK.repeat_interleave(R, 0)).unflatten(0, (-1, R))
        more_BRK = (_changed(f_BRK, change) - f_BRK) * (units_BK >= 0)[:, None]
        delta_BRW = more_BRK @ self.W_dec[units_BK.clamp(min=0)]
        return self.reference_BRW + (delta_BRW if self.scale_BR1 is None else delta_BRW * self.scale_BR1)


def _changed(u: Tensor, change: Change) -> Tensor:
    return u * change.beta if change.op == "scale" else u + change.beta


# ---------------------------------------------------------------- in a forward pass


def make_edits(model: VisionModel, site: str | Site, kind: UnitKind, units_BK: Tensor, change: Change) -> list[Edit]:
    """Edits for `model.run` that change the units of every image, int64 [B, K] (-1 for none), at the positions of the site.

    A change that is no change (scale by 1, add 0) or lists that are all empty leave the pass bit for bit as it was, with
    features only where the error is kept.

    Raises:
        BadUnits: see `check_units`. BadSite, UnknownSite, BadSae: the site cannot be edited, or the SAE is of another.
    """
    known = one_site(model.facts, site)
    check_units(units_BK, kind.count(model, site))
    if kind.keeps_clean and is_void(units_BK, change):
        return []
    facts = model.facts.site(known.path)

    def apply(part: Tensor) -> Tensor:
        rows_BRW, back = rows_of(facts, part)
        return back(kind.hold(rows_BRW).edited(units_BK.to(part.device), change))

    return [Edit(Site(path=known.path, tokens=known.tokens), "fn", apply)]


def is_void(units_BK: Tensor, change: Change) -> bool:
    """Whether nothing is changed: by the change itself, or because no image has a unit."""
    return change.is_identity or not bool((units_BK >= 0).any())


def check_units(units_BK: Tensor, count: int) -> None:
    """Refuse lists of units, int64 [lists, K], that name a unit twice or one that is not there; -1 stands for none.

    Raises:
        BadUnits: the message says which list and unit.
    """
    if units_BK.ndim != 2 or units_BK.dtype != torch.int64:
        raise BadUnits(f"units have shape {tuple(units_BK.shape)} and {units_BK.dtype}; expected int64 [lists, K]")
    wrong = ((units_BK < -1) | (units_BK >= count)).nonzero()
    if len(wrong):
        row, place = wrong[0].tolist()
        raise BadUnits(f"list {row} names unit {int(units_BK[row, place])}; there are units 0..{count - 1} (-1: none)")
    ordered = units_BK.sort(1).values
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).nonzero()
    if len(twice):
        row, place = twice[0].tolist()
        raise BadUnits(f"list {row} names unit {int(ordered[row, place])} twice; name every unit once")
