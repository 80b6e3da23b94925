"""What stands in for a vision tower: it is run once, looked at in one place, and the tower is itself again afterwards."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miclip_core.zoo.stand_in import project
from schemas.errors import HookNeverFired, UnsupportedBlock

TOKENS = torch.arange(24.0).view(2, 3, 4)
Look = Callable[[Any], Any]


class Tower(nn.Module):
    """Of two blocks, and no use to anybody."""

    def forward(self, pixels: Tensor) -> Tensor:
        return -pixels


class Library(nn.Module):
    """A model that does with its tower what it is told, and doubles what it finds."""

    def __init__(self, use: Look) -> None:
        super().__init__()
        self.vision_tower = Tower()
        self._use = use

    @property
    def base_model(self) -> Library:
        return self

    def get_image_features(self, pixel_values: Tensor, return_dict: bool) -> SimpleNamespace:
        found = self._use(lambda: self.vision_tower(pixel_values, output_hidden_states=True))
        return SimpleNamespace(pooler_output=2 * found)


@pytest.mark.parametrize(
    ("use", "place"),
    [
        (lambda run: run().last_hidden_state, None),
        (lambda run: run().hidden_states[-1], 1),
        (lambda run: run().hidden_states[-2], 0),
        (lambda run: run().hidden_states[2], 1),
        (lambda run: run().hidden_states[0], -1),
    ],
)
def test_the_tokens_are_handed_over_and_it_is_said_where(use: Look, place: int | None) -> None:
    found, seen = project(Library(use), TOKENS, 2)
    assert torch.equal(found, 2 * TOKENS) and seen == place


@pytest.mark.parametrize(
    ("use", "times"),
    [
        (lambda run: TOKENS, 0),
        (lambda run: (run(), run())[1].last_hidden_state, 2),
    ],
)
def test_a_library_that_does_not_run_its_tower_once_is_refused(use: Look, times: int) -> None:
    with pytest.raises(HookNeverFired, match=f"ran its vision tower {times} times"):
        project(Library(use), TOKENS, 2)


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda run: (run(), TOKENS)[1], "reads nothing of"),
        (lambda run: (lambda out: out.last_hidden_state + out.hidden_states[1])(run()), "reads the end, block 0 of"),
        (lambda run: run().hidden_states[3], "hidden state 3 of a tower of 2 blocks"),
        (lambda run: run().hidden_states[-4], "hidden state -4 of a tower of 2 blocks"),
    ],
)
def test_a_library_that_looks_at_no_or_several_places_is_refused(use: Look, reason: str) -> None:
    with pytest.raises(UnsupportedBlock, match=reason):
        project(Library(use), TOKENS, 2)


def test_the_tower_is_itself_again_even_after_an_error() -> None:
    library = Library(lambda run: run().last_hidden_state)
    project(library, TOKENS, 2)
    assert torch.equal(library.vision_tower(TOKENS), -TOKENS)
    library = Library(lambda run: run().hidden_states[9])
    with pytest.raises(UnsupportedBlock):
        project(library, TOKENS, 2)
    assert torch.equal(library.vision_tower(TOKENS), -TOKENS)
