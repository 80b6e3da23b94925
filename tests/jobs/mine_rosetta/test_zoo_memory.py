"""Mining the graph of a zoo takes the memory that its plan states."""

from __future__ import annotations

import sys

import pytest

from tests.benchmarks.measures import run_child
from tests.jobs.mine_rosetta.memory_of_zoo import plan_of, stated

CHILD = """
import json, sys
from tests.benchmarks.measures import peak
from tests.jobs.mine_rosetta.memory_of_zoo import mine, plan_of, stated
members, units, k = map(int, sys.argv[1:])
mine(plan_of(3, 50, 2))  # libraries are loaded
plan, before = plan_of(members, units, k), peak()
rows = mine(plan)
print(json.dumps({"taken": peak() - before, "stated": stated(plan), "rows": rows}))
"""


def test_what_is_stated_counts_units_the_buddies_they_may_have_and_tuples_of_anchors() -> None:
    edges, units, tuples = 3 * 2 * 50, 3 * 50, 3 * 50
    at_a_time = stated(plan_of(3, 1, 1)) - 110 * 3 - 200 * 3 - 3 * (4 * 3 + 44)
    assert at_a_time == 96 << 20
    assert stated(plan_of(3, 50, 2)) == at_a_time + 110 * edges + 200 * units + 3 * (4 * tuples + 44 * 50)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("case", [(20, 1000, 6), (10, 6000, 5)])
def test_a_zoo_in_which_every_unit_has_all_the_buddies_it_may_have_takes_what_is_stated(case: tuple[int, ...]) -> None:
    found = run_child(CHILD, *case, timeout=500)
    members, units, _ = case
    assert found["rows"] >= members * units * (members - 1)  # tuples around every unit
    assert 0.5 * found["stated"] < found["taken"] <= 1.1 * found["stated"], found
