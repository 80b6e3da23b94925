"""The queries of docs/describe.md give what a reader takes from them, on made-up lists of two sites, two seeds and pool: max."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.stores.base import make_store
from tests.made_up_descriptions import describe_stage, publish_scores
from tests.queries import Lake, ask, open_tables

MODEL, HERE, THERE = "demo:clip-p8", "resid_post.3@patch", "stage.3@map"
CONCEPTS = ("red", "green", "circle")
OURS, VALUES, TRUTH = "miclip in+out", "act_values pool=max", "auroc pool=max"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    store = make_store(str(tmp_path_factory.mktemp("lake")))

    def publish(variant: str, names: Sequence[str], top: float, **stage: Any) -> Any:
        scores = [[top - unit / 8 if name == said else 0.125 for name in CONCEPTS] for unit, said in enumerate(names)]
        return publish_scores(store, describe_stage(variant, CONCEPTS, MODEL, **{"site": HERE, **stage}), scores)

    plans = [
        publish(TRUTH, ["red", "green"], 0.875),
        publish(VALUES, ["red", "circle"], 7.0),
        publish(OURS, ["red", "green"], 0.5, seed=3),
        publish(OURS, ["circle", "circle"], 0.5, seed=4),
        publish(TRUTH, ["circle", "red"], 0.625, site=THERE),
        publish(OURS, ["green", "red"], 0.5, site=THERE, seed=3),
        publish(OURS, ["green", "green"], 0.5, sae="aa", seed=3),
        publish(OURS, ["red", "red"], 0.5, sae="bb", seed=3),
    ]
    return open_tables(store, plans, ["unit_concepts"])


def test_names_stand_side_by_side_beside_a_truth_that_is_no_name(lake: Lake) -> None:
    rows = ask(lake, "describe.md", "AS best_label")
    assert [tuple(row.values())[1:] for row in rows] == [
        (HERE, "neurons", None, 0, f"red ({VALUES}), red ({OURS})", "red", 0.875),
        (HERE, "neurons", None, 1, f"circle ({VALUES}), green ({OURS})", "green", 0.75),
        (THERE, "neurons", None, 0, f"green ({OURS})", "circle", 0.625),
        (THERE, "neurons", None, 1, f"red ({OURS})", "red", 0.5),
        *((HERE, "features", "sae:aa", unit, f"green ({OURS})", None, None) for unit in (0, 1)),
        *((HERE, "features", "sae:bb", unit, f"red ({OURS})", None, None) for unit in (0, 1)),
    ]


def test_units_of_a_concept_are_those_of_one_site_one_sae_and_one_seed(lake: Lake) -> None:
    rows = ask(lake, "describe.md", "list(unit ORDER BY rank)")
    found = {(row["site"], row["sae"], row["variant"], row["seed"]): (row["units"], row["best"]) for row in rows}
    assert found[HERE, None, TRUTH, None] == ([0, 1], 0.875)
    assert found[THERE, None, TRUTH, None] == ([1, 0], 0.5)
    assert found[HERE, None, OURS, 3] == ([0, 1], 0.5) and found[HERE, None, OURS, 4] == ([0, 1], 0.125)
    assert found[HERE, "sae:aa", OURS, 3] == ([0, 1], 0.125) and found[HERE, "sae:bb", OURS, 3] == ([0, 1], 0.5)
    assert len(rows) == len(found) == 8
