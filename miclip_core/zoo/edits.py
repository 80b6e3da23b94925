"""Edits of a forward pass: at which site, which tokens and channels, and what is done to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from miclip_core.zoo.select import position_axis
from schemas.models import SiteFacts, selected_range
from schemas.refs import Site

Op = Literal["set", "add", "scale", "mean", "project", "fn"]


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of one site, for all images or per image.

    site: path and, optionally, `@tokens`; no reduction. channels: indices into the last axis of the vectors (first axis
        of a map); None for all. positions: indices within the token selection; None for all.
    op: set (x <- value), add (x + value), scale (x * value), mean (x <- value, a table per position:
        [positions, channels]), project (x <- b + R R^T (x - b) with value = R [channels, r] orthonormal and base = b),
        fn (x <- value(x)).
    value: broadcast against the selected part, which has the layout of the site with positions and channels cut:
        tokens [B, P, *shape], heads [B, H, P, *rest], map [B, C, P] or [B, C, h, w], vector [B, C].
        A first axis of length B makes it a value per image.
    """

    site: Site
    op: Op
    value: float | Tensor | Callable[[Tensor], Tensor]
    channels: Sequence[int] | None = None
    positions: Sequence[int] | None = None
    base: Tensor | None = None

    @property
    def path(self) -> str:
        """The canonical path that is edited."""
        return self.site.path


def rows_of(facts: SiteFacts, part: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The selected part of a site as rows [B, R, width], flattened as tables of activations are, and the way back.

    The way back takes rows of any float dtype to the layout and dtype of the part.
    """
    flat = part.flatten(2) if facts.layout == "map" else part
    axis = position_axis(facts)
    moved = flat.unsqueeze(1) if axis is None else flat.movedim(axis, 1)

    def back(rows_BRW: Tensor) -> Tensor:
        new = rows_BRW.to(part.dtype).reshape(moved.shape)
        return (new if axis is None else new.movedim(1, axis)).reshape(part.shape)

    return moved.reshape(*moved.shape[:2], facts.width), back


def apply_edits(facts: SiteFacts, whole: Tensor, edits: Sequence[Edit]) -> Tensor:
    """All edits of one site in declaration order; returns a new tensor, `whole` is never written to."""
    for edit in edits:
        whole = _apply(facts, whole, edit)
    return whole


def _apply(facts: SiteFacts, whole: Tensor, edit: Edit) -> Tensor:
    if edit.op == "fn" and edit.site.tokens in (None, "all") and edit.channels is None and edit.positions is None:
        return edit.value(whole)  # type: ignore[operator]
    axis = position_axis(facts)
    flat = whole.flatten(2) if facts.layout == "map" else whole
    channel_axis = 1 if facts.layout == "map" else flat.ndim - 1
    cuts: list[tuple[int, Tensor]] = []
    if axis is not None:
        first, last = selected_range(facts, edit.site.tokens)
        rows = torch.arange(first, last, device=whole.device)
        cuts.append((axis, rows if edit.positions is None else rows[list(edit.positions)]))
    if edit.channels is not None:
        cuts.append((channel_axis, torch.as_tensor(list(edit.channels), device=whole.device)))
    part = flat
    for cut_axis, index in cuts:
        part = part.index_select(cut_axis, index)
    new = _changed(part, edit, channel_axis).to(whole.dtype).expand(part.shape)
    return _put(flat, cuts, new).reshape(whole.shape)


def _put(whole: Tensor, cuts: list[tuple[int, Tensor]], new: Tensor) -> Tensor:
    """A copy of `whole` in which the cut-out part is `new`; differentiable in both."""
    if not cuts:
        return new.clone()
    (axis, index), *rest = cuts
    inner = _put(whole.index_select(axis, index), rest, new) if rest else new
    return whole.index_copy(axis, index, inner.contiguous())


def _changed(part: Tensor, edit: Edit, channel_axis: int) -> Tensor:
    if edit.op == "fn":
        return edit.value(part)  # type: ignore[operator]
    value = torch.as_tensor(edit.value, dtype=part.dtype, device=part.device)
    if value.ndim == 4 and part.ndim == 3:
        value = value.flatten(2)  # a map given as a map
    match edit.op:
        case "set":
            return value
        case "mean":
            return value.T if channel_axis == 1 and part.ndim == 3 and value.ndim == 2 else value
        case "add":
            return part + value
        case "scale":
            return part * value
        case "project":
            base = torch.zeros((), dtype=part.dtype) if edit.base is None else edit.base
            base = torch.as_tensor(base, dtype=part.dtype, device=part.device)
            moved = part.movedim(channel_axis, -1) - base
            return (base + moved @ value @ value.T).movedim(-1, channel_axis)
