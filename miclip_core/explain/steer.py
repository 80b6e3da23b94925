"""Steering: a direction is added to tokens of a vision tower, and the rest of the tower and the projection run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from miclip_core.explain.language import soft_tokens
from miclip_core.zoo.edits import Edit
from miclip_core.zoo.geometry import normalise
from miclip_core.zoo.select import whole_site
from miclip_core.zoo.sitemap import promote
from miclip_core.zoo.start import CachedBlock
from schemas.errors import BadSae, BadSpec, BadUnits, EditNotRead, GeometryMismatch, NonFiniteActivation
from schemas.models import ModelFacts
from schemas.refs import Site

if TYPE_CHECKING:
    from miclip_core.explain.vlm import Vlm

# ---------------------------------------------------------------- what is added


def directions(
    decoder_UD: Tensor, kind: Literal["sae", "random", "permuted"], features: Sequence[int], seed: int = 0
) -> Tensor:
    """Unit vectors fp32 [features, D] to steer with.

    sae: the decoder row of each feature. random: a Gaussian direction of (seed, feature). permuted: the row of the
    feature half the dictionary away, (feature + U // 2) mod U.

    Raises:
        BadUnits: a feature that the dictionary does not have. BadSae: a row without direction: zero or not finite.
    """
    U, D = decoder_UD.shape
    if wrong := [feature for feature in features if not 0 <= feature < U]:
        raise BadUnits(f"there is no feature {wrong[0]}; this dictionary has 0..{U - 1}")
    if kind == "random":
        rows = [np.random.default_rng([seed, feature]).standard_normal(D) for feature in features]
        vectors_UD = torch.from_numpy(np.stack(rows)).to(decoder_UD.device)
    else:
        shift = U // 2 if kind == "permuted" else 0
        vectors_UD = decoder_UD[[(feature + shift) % U for feature in features]].double()
    lengths_U1 = vectors_UD.norm(dim=1, keepdim=True)
    if not bool(((lengths_U1 > 0) & torch.isfinite(lengths_U1)).all()):
        row = int((~((lengths_U1 > 0) & torch.isfinite(lengths_U1))).flatten().nonzero()[0])
        raise BadSae(f"the decoder row of feature {features[row]} is zero or not finite, so it has no direction")
    return (vectors_UD / lengths_U1).float()


@dataclass(frozen=True, eq=False)
class Injection:
    """What is done to the tokens of R images.

    vectors: fp32 [R, D], alpha times a unit vector. positions: for every image which tokens, counted with the prefix
    tokens; None for all. op: `add` the vector to them, or `replace` them by it.
    """

    vectors_RD: Tensor
    positions: Sequence[Tensor] | None = None
    op: Literal["add", "replace"] = "add"


def inject(tokens_RTD: Tensor, injection: Injection) -> tuple[Tensor, Tensor]:
    """New tokens [R, T, D] of the same dtype, and how much of the change the dtype could hold, fp32 [R].

    The sum is made in fp32 and rounded once. Realised is ||t' - t|| / ||wanted change|| over the positions of an image
    (with `replace` ||t'|| / ||wanted||); 1 within 2 % unless the dtype rounds the vector away, as every one does where
    tokens are much larger. 1 where nothing is asked.

    Raises:
        GeometryMismatch: vectors or positions that do not fit the tokens.
        NonFiniteActivation: a new token is NaN or infinite.
    """
    chosen_RT = _chosen(tokens_RTD, injection)
    vectors_RD = injection.vectors_RD.to(promote(tokens_RTD[:0]))
    new_RTD = _changed(tokens_RTD, chosen_RT[:, :, None], vectors_RD[:, None], injection.op)
    if not bool(torch.isfinite(new_RTD).all()):
        rows = (~torch.isfinite(new_RTD).flatten(1).all(dim=1)).nonzero().flatten().tolist()
        raise NonFiniteActivation(f"steered tokens of images {rows} of this batch are not finite; take a smaller alpha")
    asked_R = vectors_RD.norm(dim=1) * chosen_RT.sum(1).sqrt()
    found = [
        (promote(new_TD[chosen_T]) - (promote(old_TD[chosen_T]) if injection.op == "add" else 0)).norm()
        for new_TD, old_TD, chosen_T in zip(new_RTD, tokens_RTD, chosen_RT, strict=True)
    ]  # image by image, because copies in fp32 of a whole batch are large
    realised_R = torch.where(asked_R > 0, torch.stack(found) / asked_R.clamp(min=1e-30), 1)
    return new_RTD, realised_R.float()


def _changed(tokens_RTD: Tensor, chosen_RT1: Tensor, vectors_R1D: Tensor, op: Literal["add", "replace"]) -> Tensor:
    """The new tokens, made in one copy of at least fp32."""
    if op == "add":
        return torch.where(chosen_RT1, vectors_R1D, 0).add_(tokens_RTD).to(tokens_RTD.dtype)
    return torch.where(chosen_RT1, vectors_R1D, tokens_RTD).to(tokens_RTD.dtype)


def _chosen(tokens_RTD: Tensor, injection: Injection) -> Tensor:
    """Which tokens are changed, bool [R, T]."""
    R, T, D = tokens_RTD.shape
    if tuple(injection.vectors_RD.shape) != (R, D):
        raise GeometryMismatch(
            f"vectors have shape {tuple(injection.vectors_RD.shape)}, expected [{R}, {D}]: one per image"
        )
    if injection.positions is None:
        return torch.ones(R, T, dtype=torch.bool, device=tokens_RTD.device)
    if len(injection.positions) != R:
        raise GeometryMismatch(f"{len(injection.positions)} lists of positions for {R} images; give one per image")
    chosen_RT = torch.zeros(R, T, dtype=torch.bool, device=tokens_RTD.device)
    for row, places in enumerate(injection.positions):
        if len(places) and not (int(places.min()) >= 0 and int(places.max()) < T):
            raise GeometryMismatch(f"positions of image {row} reach {int(places.max())}; it has tokens 0..{T - 1}")
        chosen_RT[row, places.to(chosen_RT.device)] = True
    return chosen_RT


# ---------------------------------------------------------------- where it is added


def patch_positions(facts: ModelFacts, which: str) -> Tensor:
    """Tokens of an image, int64, counted with the prefix tokens.

    which: `all` with the prefix tokens, `patches` without, or `block:n` for n x n patches in the middle of the grid.

    Raises:
        BadSpec: none of these, or more patches than there are.
    """
    rows, columns = facts.grid
    patches_IJ = facts.n_prefix + torch.arange(rows * columns).reshape(rows, columns)
    if which == "all":
        return torch.arange(facts.n_prefix + rows * columns)
    if which == "patches":
        return patches_IJ.flatten()
    name, _, size = which.partition(":")
    if name != "block" or not size.isdigit() or not 1 <= int(size) <= min(rows, columns):
        raise BadSpec(
            f"positions {which!r}: expected all, patches, or block:n with n from 1 to {min(rows, columns)} "
            f"({facts.model} has {rows} x {columns} patches)"
        )
    n = int(size)
    top, left = (rows - n) // 2, (columns - n) // 2
    return patches_IJ[top : top + n, left : left + n].flatten()


def active_positions(facts: ModelFacts, patches: Sequence[int] | Tensor) -> Tensor:
    """The tokens, int64, of patches that are counted without the prefix tokens, such as those where a feature is active.

    Raises:
        GeometryMismatch: a patch that is not on the grid.
    """
    places = torch.as_tensor(patches, dtype=torch.int64).flatten()
    count = facts.grid[0] * facts.grid[1]
    if len(places) and not (int(places.min()) >= 0 and int(places.max()) < count):
        raise GeometryMismatch(f"patches {int(places.min())}..{int(places.max())}: {facts.model} has 0..{count - 1}")
    return places + facts.n_prefix


def blank_image(kind: Literal["white", "grey", "black", "noise"], facts: ModelFacts, seed: int = 0) -> Tensor:
    """An image without content as the model's input, fp32 [3, h, w].

    white and black: 255 and 0 in every channel. grey: zero after normalisation, the mean colour. noise: standard normal
    numbers of the seed after normalisation.
    """
    shape = (3, *facts.input_hw)
    if kind == "grey":
        return torch.zeros(shape)
    if kind == "noise":
        return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()
    return normalise(torch.full(shape, 255 if kind == "white" else 0, dtype=torch.uint8), facts.geometry)


# ---------------------------------------------------------------- in the tower


class Steering:
    """A vision-language model cut behind one block of its tower: images up to there, then tokens from there on.

    Raises:
        UnknownSite: no such block. EditNotRead: the language model reads the output of an earlier block, so that nothing
            done here would reach it.
    """

    def __init__(self, vlm: Vlm, block: int) -> None:
        self._vlm, self._block = vlm, block
        self._facts = vlm.tower.facts.site(f"resid_post.{block}")
        if block > vlm.language.reads_block:
            raise EditNotRead(
                f"{self._facts.path}: the language model of {vlm.tower.facts.model} reads {vlm.language.reads}, which "
                f"comes before, so steering here would change nothing; take block {vlm.language.reads_block} or earlier"
            )

    def prefix(self, images_RCIJ: Tensor) -> Tensor:
        """Normalised images [R, 3, h, w] -> the whole output of the block [R, T, D], prefix tokens included.

        Raises:
            What `VisionModel.run` raises.
        """
        site = str(whole_site(self._facts))
        tower = self._vlm.tower
        return tower.run(images_RCIJ.to(tower.device, tower.dtype), [site])[site]

    def finish(self, tokens_RTD: Tensor) -> Tensor:
        """The output of the block [R, T, D], steered or not -> soft tokens [R, image_tokens, width of the language model].

        Raises:
            See `soft_tokens` and `VisionModel.run`.
        """
        return soft_tokens(self._vlm, self._read(tokens_RTD))

    def _read(self, tokens_RTD: Tensor) -> Tensor:
        """The rest of the tower, up to what the language model reads."""
        tower, path = self._vlm.tower, self._facts.path
        if path == self._vlm.language.reads:
            return tokens_RTD
        site = str(whole_site(tower.facts.site(self._vlm.language.reads)))
        if self._block + 1 < tower.facts.n_blocks:
            return tower.run(None, [site], start=CachedBlock(f"resid_pre.{self._block + 1}", tokens_RTD))[site]
        # Only the final norm is left. No pass starts there, so the last MLP runs and its sum is replaced.
        put = Edit(Site(path=path), "fn", lambda _: tokens_RTD)
        return tower.run(None, [site], [put], start=CachedBlock(f"resid_mid.{self._block}", tokens_RTD))[site]
