"""Maps turned by quarter turns: all four as likely, each image by its own number, and only where a turn keeps the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miclip_core.rosetta.turns import quarter_turns, turned
from schemas.errors import BadGrid


def test_each_image_is_turned_by_its_own_number() -> None:
    rows = torch.arange(4 * 9 * 2.0).reshape(4, 9, 2)
    found = turned(rows, (3, 3), np.array([0, 1, 2, 3]))
    for image in range(4):
        for unit in range(2):
            expected = np.rot90(rows[image, :, unit].reshape(3, 3).numpy(), image)
            assert (found[image, :, unit].reshape(3, 3).numpy() == expected).all()


def test_turns_are_of_the_image_alone_and_all_as_likely() -> None:
    turns = quarter_turns(range(2000))
    assert (quarter_turns([7, 1999, 3]) == turns[[7, 1999, 3]]).all()
    assert np.bincount(turns, minlength=4).min() > 430 and turns.max() == 3


def test_a_grid_that_no_turn_keeps_is_refused() -> None:
    with pytest.raises(BadGrid, match="3x2"):
        turned(torch.zeros(1, 6, 1), (3, 2), np.array([1]))
