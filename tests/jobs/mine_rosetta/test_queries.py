"""The queries of docs/rosetta.md give what a reader takes from them, on the tables of a made-up zoo."""

from __future__ import annotations

import math

import pytest

from cluster.stores.base import make_store
from jobs.mine_rosetta.plan import GRAPH, Side, compared, pair_stage
from schemas.plans import Plan, Round
from schemas.rosetta_specs import MineRosettaSpec
from tests.jobs.mine_rosetta.made_up_zoo import SAE, MadeUp, buddy, key, make_member, mine
from tests.made_up_descriptions import describe_stage, publish_scores
from tests.queries import Lake, ask, open_tables

PAGE, NAMES = "rosetta.md", "miclip in+out"
SITE = "stage.1@map"
SMALL, LARGE = make_member("demo:clip-p8", {SITE: 4}), make_member("demo:clip-p16", {SITE: 16})
LATENTS = make_member("demo:clip-rn", {SITE: 8}, sae=SAE)
MEMBERS = (SMALL, LARGE, LATENTS)
S, L, T = ([key(member, SITE, unit) for unit in range(4)] for member in MEMBERS)
ZOO = MadeUp(
    MEMBERS,
    {
        (0, 1): [buddy(S[0], L[0], 0.9), buddy(S[1], L[1], 0.8), buddy(S[3], L[0], 0.95, below=True)],
        (0, 2): [buddy(S[0], T[0], 0.7)],
        (1, 2): [buddy(L[0], T[0], 0.85), buddy(L[2], T[2], 0.6), buddy(L[3], T[3], 0.5)],
        (1, 1): [buddy(L[0], L[1], 0.99)],
    },
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    zoo = ZOO.publish(store)
    mine(store, zoo)
    right, wrong = [[0.9, 0.1]] * 2 + [[0.1, 0.9]] * 2, [[0.1, 0.9]] * 4
    plans = [
        zoo,
        publish_scores(store, describe_stage(NAMES, ["red", "star"], "demo:clip-p8", SITE), right),
        publish_scores(store, describe_stage("auroc", ["red", "star"], "demo:clip-p8", SITE), wrong),
        publish_scores(store, describe_stage(NAMES, ["red", "star"], "demo:clip-rn", SITE), wrong),  # of its neurons
        publish_scores(store, describe_stage(NAMES, ["red", "star"], "demo:clip-rn", SITE, sae=SAE), right),
    ]
    spec = MineRosettaSpec(k=(3, 3))
    for a, b in [*compared(MEMBERS), (1, 1)]:
        stage = pair_stage(spec, *(Side.of(spec, MEMBERS[m]) for m in (a, b)))
        plans.append(Plan(stage=stage, rounds=(Round(name=GRAPH, rows=1, shard_rows=1),), worker="made up"))
    found = open_tables(store, plans[:1], ["rosetta_universality", "rosetta_cliques"])
    for table, of in (("rosetta_buddies", plans[5:]), ("unit_concepts", plans[1:5])):
        found.register(table, open_tables(store, of, [table]).table(table).to_arrow_table())
    return found


def test_cliques_come_with_their_units(lake: Lake) -> None:
    (clique,) = ask(lake, PAGE, "struct_pack")
    assert (clique["clique"], clique["size"], clique["min_r"], clique["mean_r"]) == (0, 3, 0.7, 0.82)
    assert sorted((tuple(unit.values()) for unit in clique["units"]), key=str) == sorted([S[0], L[0], T[0]], key=str)


def test_partners_of_a_unit_are_in_other_models_and_on_either_side_of_a_pair(lake: Lake) -> None:
    rows = [tuple(row.values()) for row in ask(lake, PAGE, "FROM edges")]
    assert rows == [(*S[0], 0.9), (*T[0], 0.85)]  # of unit 0 of demo:clip-p16, the first model in the alphabet


def test_units_are_counted_by_how_many_models_have_them(lake: Lake) -> None:
    rows = [tuple(row.values()) for row in ask(lake, PAGE, "PARTITION BY model, sae")]
    assert rows == [
        ("demo:clip-p16", None, 2, 1, 0.063), ("demo:clip-p16", None, 1, 3, 0.188), ("demo:clip-p16", None, 0, 12, 0.75),
        ("demo:clip-p8", None, 2, 1, 0.25), ("demo:clip-p8", None, 1, 1, 0.25), ("demo:clip-p8", None, 0, 2, 0.5),
        ("demo:clip-rn", f"sae:{SAE}", 2, 1, 0.125), ("demo:clip-rn", f"sae:{SAE}", 1, 2, 0.25),
        ("demo:clip-rn", f"sae:{SAE}", 0, 5, 0.625),
    ]  # fmt: skip
    by_site = {row["model"]: (row["in_two_others"], row["units"], row["most"]) for row in ask(lake, PAGE, "in_two")}
    assert by_site == {"demo:clip-p8": (1, 4, 2), "demo:clip-p16": (1, 16, 2), "demo:clip-rn": (1, 8, 2)}


def test_shared_units_have_the_names_that_one_method_gives_either_of_them(lake: Lake) -> None:
    rows = [
        (row["unit_a"], row["called_a"], row["unit_b"], row["called_b"], row["r"])
        for row in ask(lake, PAGE, "called_a")
    ]
    assert rows == [
        (0, "red", 0, None, 0.9), (0, None, 0, "red", 0.85), (1, "red", 1, None, 0.8), (0, "red", 0, "red", 0.7),
        (2, None, 2, "star", 0.6), (3, None, 3, "star", 0.5),
    ]  # fmt: skip


def test_shared_units_are_held_against_sizes_and_against_others(lake: Lake) -> None:
    (fit,) = ask(lake, PAGE, "regr_slope")
    slope = math.log(4 / 2) / math.log(16 / 4)  # neurons: 2 of 4 units are shared, and 4 of 16
    assert fit == {"models": 2, "slope": pytest.approx(slope), "r2": pytest.approx(1)}
    rows = {(row["model"], row["is_shared"]): row for row in ask(lake, PAGE, "is_shared")}
    assert len(rows) == 6
    said = [tuple(rows["demo:clip-p8", shared].values())[3:] for shared in (True, False)]
    assert said == [
        pytest.approx((2, 0.13, 0.105)),
        pytest.approx((2, 0.63, 0.125)),
    ]  # of units 0 and 1, and of 2 and 3
