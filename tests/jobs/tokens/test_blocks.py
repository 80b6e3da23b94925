"""Blocks of rows are those of the whole index, whatever is read at once and however it is cut into shards."""

from __future__ import annotations

import pytest

from jobs.tokens.blocks import READ_BYTES, row_blocks
from schemas.plans import Shard


def blocks(start: int, stop: int, together: int, numbers: int) -> list[list[tuple[int, int]]]:
    return list(row_blocks(Shard(number=0, round=0, start=start, stop=stop), together, numbers))


def test_as_many_are_asked_for_at_once_as_fit() -> None:
    two_at_once = READ_BYTES // (4 * 32 * 2)
    assert blocks(0, 100, 32, two_at_once) == [[(0, 32), (32, 64)], [(64, 96), (96, 100)]]
    assert blocks(0, 100, 32, 100 * two_at_once) == [[(0, 32)], [(32, 64)], [(64, 96)], [(96, 100)]]
    assert blocks(7, 7, 32, 1) == []


@pytest.mark.parametrize("numbers", [1, READ_BYTES // 400, READ_BYTES])
def test_blocks_do_not_depend_on_shards_that_begin_at_whole_ones(numbers: int) -> None:
    whole = [block for group in blocks(0, 300, 32, numbers) for block in group]
    cut = [
        block for start in (0, 96, 192) for group in blocks(start, min(start + 96, 300), 32, numbers) for block in group
    ]
    assert whole[:9] == cut[:9] and whole == [(n, min(n + 32, 300)) for n in range(0, 300, 32)]
