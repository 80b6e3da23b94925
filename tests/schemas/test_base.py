"""What every frozen value promises: a copy with another field knows nothing of what was worked out before."""

from __future__ import annotations

from functools import cached_property

import pytest

from schemas.base import Frozen
from schemas.plans import StageSpec

STAGE = StageSpec(kind="selftest", method=1, subject="a", output="selftest", params={"rows": 3})


class Square(Frozen):
    side: int

    @cached_property
    def area(self) -> int:
        return self.side**2


class Cube(Square):
    @cached_property
    def volume(self) -> int:
        return self.area * self.side


def test_a_changed_stage_has_the_digest_of_a_new_one() -> None:
    first = STAGE.digest
    changed = STAGE.model_copy(update={"params": {"rows": 4}})
    assert changed.digest == StageSpec.model_validate({**STAGE.model_dump(), "params": {"rows": 4}}).digest != first
    assert STAGE.digest == first


def test_what_a_base_class_works_out_is_left_behind_too_and_fields_are_not() -> None:
    cube = Cube(side=2)
    assert (cube.area, cube.volume) == (4, 8)
    changed = cube.model_copy(update={"side": 3})
    assert (changed.side, changed.area, changed.volume) == (3, 9, 27)
    assert (cube.area, cube.volume) == (4, 8)


@pytest.mark.parametrize("deep", [False, True])
def test_an_unchanged_copy_is_equal_and_keeps_what_it_knows(deep: bool) -> None:
    cube = Cube(side=2)
    assert cube.volume == 8
    copy = cube.model_copy(deep=deep)
    assert copy == Cube(side=2) and copy.__dict__["volume"] == 8
