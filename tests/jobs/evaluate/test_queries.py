"""The queries of docs/evaluate.md give what a reader takes from them, on made-up tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from cluster.inputs import StoreInputs
from cluster.stores.base import make_store
from tests.jobs.evaluate.made_up import (
    ALL_WRONG,
    SOME_WRONG,
    TRUTH,
    effects_stage,
    plan,
    publish_effects,
    publish_names,
    publish_truth,
)
from tests.made_up_descriptions import run_plans

PAGE = Path(__file__).parents[3] / "docs" / "evaluate.md"
OURS, VALUES, WPMI = "miclip in+out", "act_values", "clip_dissect soft_wpmi"
HURT = {name: (10, 9, 9 - n, 10, 9, 8) for n, name in enumerate(("a", "b", "c", "d", "e", "f"), 1)}
UNHURT = dict.fromkeys(HURT, (10, 9, 9, 10, 9, 9))


def query(about: str) -> str:
    """The one SQL block of the page with this text in it."""
    found = [q for q in re.findall(r"^```sql\n(.*?)^```", PAGE.read_text(), re.M | re.S) if about in q]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    read = [
        publish_truth(store),
        publish_names(store, OURS, TRUTH, seed=0),
        publish_names(store, OURS, ALL_WRONG, seed=1),
        publish_names(store, VALUES, SOME_WRONG),
        publish_names(store, WPMI, ["red", "green", "red", *TRUTH[3:]]),
        publish_effects(store, effects_stage(OURS, 0), HURT),
        publish_effects(store, effects_stage(VALUES), UNHURT),
    ]
    judged = plan(read)
    assert not run_plans(store, [judged]).board.failed
    connection = duckdb.connect()
    for table in ("description_eval", "method_scores", "method_tests"):
        connection.register(table, pa.Table.from_batches(StoreInputs(store).table(judged.digest, table)))
    return connection


def ask(lake: duckdb.DuckDBPyConnection, about: str) -> list[dict[str, Any]]:
    return lake.sql(query(about)).to_arrow_table().to_pylist()


def test_the_best_method_is_the_highest_but_of_removals_the_lowest(lake: duckdb.DuckDBPyConnection) -> None:
    best = {row["measure"]: (row["variant"], row["value"], row["seeds"]) for row in ask(lake, "FROM means")}
    assert best["accuracy"] == (WPMI, 0.9, 1)  # of 1 and 0 over seeds MICLIP has a half
    assert best["dacc x0 keep"] == (OURS, -35.0, 1)
    assert best["offclass_dacc x0 keep"] == (VALUES, 0.0, 1)
    assert best["precision"][0] == WPMI


def test_pairs_are_told_from_the_side_of_the_better(lake: duckdb.DuckDBPyConnection) -> None:
    rows = {(row["measure"], row["better"], row["worse"]): row for row in ask(lake, "first_is_better")}
    assert rows["accuracy", OURS, VALUES]["by"] == pytest.approx(0.3)
    assert rows["dacc x0 keep", OURS, VALUES]["by"] == 35 and rows["dacc x0 keep", OURS, VALUES]["n_pairs"] == 6
    assert rows["offclass_dacc x0 keep", VALUES, OURS]["by"] == 10
    assert not any(row["is_real"] for row in rows.values() if row["p_holm"] is None or row["p_holm"] >= 0.05)


def test_units_that_all_methods_name_alike_are_found_by_the_first_seed(lake: duckdb.DuckDBPyConnection) -> None:
    rows = ask(lake, "FROM first_seed")
    # act_values is wrong or silent on 7 to 9, clip_dissect on 1
    assert [(row["unit"], row["named"], row["is_right"], row["methods"]) for row in rows] == [
        (unit, TRUTH[unit], True, 3) for unit in (0, 2, 3, 4, 5, 6)
    ]


def test_where_methods_differ_both_are_named(lake: duckdb.DuckDBPyConnection) -> None:
    rows = ask(lake, "AS right_method")
    pairs = {(row["unit"], row["right_method"], row["wrong_method"], row["wrong_name"]) for row in rows}
    assert (
        (7, WPMI, VALUES, "star") in pairs and (1, VALUES, WPMI, "green") in pairs and (9, OURS, VALUES, None) in pairs
    )
    assert all(row["truth"] == TRUTH[row["unit"]] != row["wrong_name"] for row in rows)
