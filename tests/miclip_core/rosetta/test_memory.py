"""Mining by tiles takes the memory of a tile, not that of all pairs."""

from __future__ import annotations

import sys

import pytest

from tests.benchmarks.measures import run_child

CHILD = """
import json, torch
from tests.benchmarks.measures import peak
from tests.mined_by_tiles import MadeUp, mine
torch.set_num_threads(1)
mine(MadeUp(64, 20), 64)  # libraries are loaded
before = peak()
maps = MadeUp(12_000, 40)
found = mine(maps, 3_000)
print(json.dumps({"taken": peak() - before, "right": bool((maps.twins.numpy() == found.of_b.ids[:, 0]).all()),
                  "exact": bool(found.of_a.exact.all() and found.of_b.exact.all())}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_all_pairs_of_many_units_are_mined_in_the_memory_of_a_tile_and_a_few_chunks() -> None:
    """A tile is 36 MB and a chunk of one member 8 MB, while all pairs are 576 MB."""
    found = run_child(CHILD, timeout=300)
    assert found["right"] and found["exact"]
    assert found["taken"] < 200e6, found
