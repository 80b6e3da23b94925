"""The library's own projection of a vision tower's tokens, without the tower: something stands in for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from schemas.errors import HookNeverFired, UnsupportedBlock


def project(module: Any, tokens_RTD: Tensor, n_blocks: int) -> tuple[Tensor, int | None]:
    """What the language model is given for R images [R, T_lm, D_lm], and where the library looked for their tokens.

    module: the library's whole model. tokens: what its vision tower, which does not run, hands over at that place,
    prefix tokens included; `n_blocks` is its depth. The place is the number of a block, -1 for the tokens before the
    first, None for what the tower returns at its end.

    Raises:
        HookNeverFired: the library did not run its tower exactly once.
        UnsupportedBlock: it looked at none or several places.
    """
    base = module.base_model
    stand_in = StandIn(tokens_RTD, n_blocks)
    with _standing_in(base.vision_tower, stand_in):
        pixels = tokens_RTD.new_zeros(len(tokens_RTD), 3, 1, 1)  # nobody looks at them
        found = base.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    return found if isinstance(found, Tensor) else torch.stack(list(found)), stand_in.place()


class StandIn:
    """What the tower returns: an object that gives the same tokens wherever it is asked, and remembers where that was."""

    def __init__(self, tokens_RTD: Tensor, n_blocks: int) -> None:
        self.hidden_states = self
        self.pooler_output: Any = None
        self._tokens_RTD, self._n_blocks = tokens_RTD, n_blocks
        self._runs = 0
        self._asked: list[int | None] = []

    def __call__(self, *args: Any, **kwargs: Any) -> StandIn:
        """The tower's forward pass."""
        self._runs += 1
        return self

    @property
    def last_hidden_state(self) -> Tensor:
        """What follows the final norm, where a tower has one."""
        self._asked.append(None)
        return self._tokens_RTD

    def __getitem__(self, index: int) -> Tensor:
        """Hidden state l + 1 is the output of block l."""
        if not -self._n_blocks - 1 <= index <= self._n_blocks:
            raise UnsupportedBlock(
                f"the language model reads hidden state {index} of a tower of {self._n_blocks} blocks"
            )
        self._asked.append(index % (self._n_blocks + 1) - 1)
        return self._tokens_RTD

    def place(self) -> int | None:
        """The one place that was looked at; see `project`."""
        if self._runs != 1:
            raise HookNeverFired(f"the library ran its vision tower {self._runs} times for one batch, expected once")
        if len(self._asked) != 1:
            places = ", ".join("the end" if block is None else f"block {block}" for block in self._asked)
            raise UnsupportedBlock(
                f"the language model reads {places or 'nothing'} of its vision tower; one that reads several layers at "
                "once cannot be steered at one of them"
            )
        return self._asked[0]


@contextmanager
def _standing_in(tower: nn.Module, stand_in: StandIn) -> Iterator[None]:
    """The tower's forward pass is the stand-in's; its own is back afterwards."""
    tower.forward = stand_in
    try:
        yield
    finally:
        del tower.forward
