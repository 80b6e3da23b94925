"""Where a forward pass can start late, and how everything before that place is passed over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from miclip_core.zoo.capture import split_block
from miclip_core.zoo.edits import Edit
from miclip_core.zoo.sitemap import Family, Native
from schemas.refs import Site


@dataclass(frozen=True, eq=False)
class CachedBlock:
    """Where a forward starts: the whole tensor of one of the `entrances` of the model, from an earlier pass.

    `resid_pre.l` or `resid_mid.l` [B, T, D]; of a convolutional model `stem` or `conv.s.b.out` [B, C, h, w].
    """

    site: str
    value: Tensor


def entrances(family: Family) -> list[str]:
    """The sites at which a forward can start, in the order in which it comes to them; none where no rule is known."""
    if family.steps:
        return [path for _, path in family.steps if path is not None]
    named = {f"resid_{place}.{block}" for place in ("pre", "mid") for block in range(len(family.blocks))}
    return [path for path in family.sites if path in named]


def with_start(family: Family, edits: dict[str, list[Edit]], start: CachedBlock) -> dict[str, list[Edit]]:
    """The edits that put a cached residual in its place, before all others; a step returns the cached tensor by itself."""
    if family.steps:
        return edits
    block = _block(start)
    merged = defaultdict(list, {path: list(some) for path, some in edits.items()})
    entrance = f"resid_pre.{block}"
    merged[entrance].insert(0, Edit(Site(path=entrance), "fn", lambda x: start.value.to(x)))
    if start.site.startswith("resid_mid"):
        # With an attention branch of zero, the residual after it is the cached tensor itself.
        silent = f"attn_out.{block}"
        merged[silent].insert(0, Edit(Site(path=silent), "fn", torch.zeros_like))
    return merged


@contextmanager
def skipping(family: Family, start: CachedBlock | None) -> Iterator[None]:
    """Make the parts before the start return at once; their own forward is back afterwards."""
    replaced = {} if start is None else replaced_parts(family, start)
    for module, forward in replaced.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def replaced_parts(family: Family, start: CachedBlock) -> dict[nn.Module, Callable[..., Any]]:
    """The modules that do nothing in a forward with this start, and what each returns instead."""
    if family.steps:
        return dict(_replaced_steps(family.steps, start))
    block = _block(start)
    passing = [before.output for before in family.blocks[:block]]
    if start.site.startswith("resid_mid"):
        passing.append(family.blocks[block].attention)
    return {part.module: partial(_pass, part) for part in passing} | _silent_patches(family)


def _block(start: CachedBlock) -> int:
    return split_block(start.site)[1] or 0


def _replaced_steps(
    steps: Sequence[tuple[nn.Module, str | None]], start: CachedBlock
) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    for module, path in steps:
        if path == start.site:
            yield module, lambda *args, **kwargs: start.value.to(_first(args, kwargs))
            return
        yield module, lambda *args, **kwargs: _first(args, kwargs)


def _silent_patches(family: Family) -> dict[nn.Module, Callable[..., Any]]:
    """The convolution that cuts images into patches gives zeros: every token is replaced before the blocks."""
    stride = tuple(size // count for size, count in zip(family.input_hw, family.grid))
    convs = (part for part in family.visual.modules() if isinstance(part, nn.Conv2d))
    return {
        conv: partial(_zeros, conv, family.grid) for conv in convs if conv.in_channels == 3 and conv.stride == stride
    }


def _zeros(conv: nn.Conv2d, grid: tuple[int, int], x_BCIJ: Tensor) -> Tensor:
    return x_BCIJ.new_zeros(len(x_BCIJ), conv.out_channels, *grid)


def _pass(part: Native, *args: Any, **kwargs: Any) -> Any:
    x = _first(args, kwargs)
    return x if part.pick is None else (x, None)


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))
