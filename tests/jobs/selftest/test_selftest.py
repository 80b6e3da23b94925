"""The torch-free kind: numbers anybody can compute again, two rounds, and switches that break it in known ways."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from cluster.executor import SerialExecutor
from cluster.ledger import load_published
from cluster.parquet import read_part
from cluster.stores.base import make_store
from jobs.selftest.work import get_value
from schemas.selftest_specs import SelftestSpec
from tests.corridor import Todo, run, selftest


def table(store: str, todo: Todo, name: str, stage: int = 0) -> pa.Table:
    published = load_published(make_store(store), todo[stage][0].digest)
    assert published is not None
    return pa.concat_tables(read_part(make_store(store).get(part.key)) for part in published.tables[name])


def test_a_value_is_splitmix64_of_seed_and_row():
    """Written again with numpy's wrapping uint64: the top 53 bits of the mixed counter, as a number below one."""

    def splitmix(seed: int, variant: str, row: int) -> float:
        with np.errstate(over="ignore"):
            state = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(row + 1)
            z = state + np.uint64(sum(variant.encode())) * np.uint64(0xD1342543DE82EF95)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return float((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53

    for seed, variant, row in [(0, "a", 0), (7, "b", 123456), (2**31, "longer", 10**9)]:
        assert get_value(seed, variant, row) == splitmix(seed, variant, row)


def test_values_are_spread_over_the_unit_interval():
    values = [get_value(1, "a", row) for row in range(4000)]
    assert min(values) >= 0 and max(values) < 1
    assert abs(np.mean(values) - 0.5) < 0.02 and abs(np.var(values) - 1 / 12) < 0.005


def test_the_second_round_adds_up_the_first(tmp_path):
    todo = selftest(rows=25, shard_rows=10, seed=3)
    run(todo, str(tmp_path), SerialExecutor(str(tmp_path)))
    rows = table(str(tmp_path), todo, "selftest")
    assert rows["row"].to_pylist() == list(range(25))
    assert rows["value"].to_pylist() == [get_value(3, "a", row) for row in range(25)]
    (summary,) = table(str(tmp_path), todo, "selftest_summary").to_pylist()
    assert (summary["rows"], summary["total"]) == (25, sum(rows["value"].to_pylist()))


def test_vectors_are_the_value_in_1024ths_halved_three_times(tmp_path):
    todo = selftest(rows=5)
    run(todo, str(tmp_path), SerialExecutor(str(tmp_path)))
    for row in table(str(tmp_path), todo, "selftest").to_pylist():
        first = round(row["value"] * 1024) / 1024
        assert row["vector"] == [first, first / 2, first / 4, first / 8]


def test_no_rows_are_a_table_without_rows(tmp_path):
    todo = selftest(rows=0)
    run(todo, str(tmp_path), SerialExecutor(str(tmp_path)))
    published = load_published(make_store(str(tmp_path)), todo[0][0].digest)
    assert published is not None and published.rows("selftest") == 0
    assert table(str(tmp_path), todo, "selftest_summary").to_pylist()[0]["total"] == 0.0


def test_variants_are_sibling_stages_with_values_of_their_own(tmp_path):
    todo = selftest(rows=20, shard_rows=10, variants=("a", "b"))
    ran = run(todo, str(tmp_path), SerialExecutor(str(tmp_path)))
    assert len(ran.of("shard_done")) == 3  # two row ranges and one merge, each for both
    a, b = (table(str(tmp_path), todo, "selftest", stage)["value"].to_pylist() for stage in (0, 1))
    assert not set(a) & set(b)


def test_a_nan_row_stops_its_shard_with_the_row_and_what_to_change(tmp_path):
    todo = selftest(rows=20, shard_rows=10, nan_rows=(13,))
    ran = run(todo, str(tmp_path), SerialExecutor(str(tmp_path)))
    (outcome,) = ran.board.failed.values()
    assert (outcome.error, outcome.task.shard.number) == ("NonFiniteActivation", 1)
    assert "row 13 is NaN; remove it from nan_rows" in outcome.message


def test_memory_that_never_suffices_fails_and_does_not_loop(tmp_path):
    todo = selftest(rows=4, oom_above=0)
    ran = run(todo, str(tmp_path), SerialExecutor(str(tmp_path)))
    (outcome,) = ran.board.failed.values()
    assert outcome.error == "OutOfMemory" and "1 rows do not fit, 0 do" in outcome.message


CHANGES = {
    "subject": "other",
    "rows": 30,
    "seed": 9,
    "nan_rows": (99,),
    "variants": ("z",),
    "shard_rows": 3,
    "sleep_ms": 1,
    "poison_shards": (7,),
    "crash_once_dir": "/nowhere",
    "error_shards": (8,),
    "oom_above": 50,
    "batch_rows": 2,
    "gang": 2,
}


@pytest.mark.parametrize("name", CHANGES)
def test_result_fields_change_the_digest_and_effort_fields_do_not(name):
    assert {*CHANGES, "kind", "reads", "over", "resources"} == set(SelftestSpec.model_fields)
    same = selftest(**{name: CHANGES[name]})[0][0].digest == selftest()[0][0].digest
    assert same == (SelftestSpec.roles()[name] == "effort")


def test_the_kind_works_without_torch_and_without_ray():
    code = "import sys, jobs.selftest.work, jobs.selftest.plan; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


def test_totals_are_exact_sums_in_row_order(tmp_path):
    """The same rows in shards of another size add up to the same number, bit for bit."""
    totals = []
    for size in (1, 7, 100):
        store, todo = str(tmp_path / str(size)), selftest(rows=40, shard_rows=size)
        run(todo, store, SerialExecutor(store))
        totals.append(table(store, todo, "selftest_summary")["total"][0].as_py())
    assert totals[0] == totals[1] == totals[2]
    assert math.isclose(totals[0], math.fsum(get_value(0, "a", row) for row in range(40)))
