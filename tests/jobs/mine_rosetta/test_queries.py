"""The queries of docs/rosetta.md give what a reader takes from them, on the tables of two made-up zoos that share models."""

from __future__ import annotations

import math
import re

import pyarrow as pa
import pytest

from cluster.catalog import Catalog
from cluster.inputs import StoreInputs
from cluster.ledger import load_published
from cluster.stores.base import make_store
from tests.jobs.mine_rosetta.made_up_zoo import SAE, MadeUp, buddy, key, make_member, mine
from tests.made_up_descriptions import describe_stage, publish_scores
from tests.queries import DOCS, Lake, ask, block, open_tables

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


OTHER = MadeUp((SMALL, LARGE), {(0, 1): [buddy(S[0], L[1], 0.4)]})
"""A second zoo of two of the models, with other neighbours."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    store = make_store(str(tmp_path_factory.mktemp("lake")))
    zoos = [made.publish(store, name, k=k) for name, k, made in (("all", 3, ZOO), ("two", 2, OTHER))]
    for zoo in zoos:
        mine(store, zoo)
    right, wrong = [[0.9, 0.1]] * 2 + [[0.1, 0.9]] * 2, [[0.1, 0.9]] * 4
    named = [
        publish_scores(store, describe_stage(NAMES, ["red", "star"], "demo:clip-p8", SITE), right),
        publish_scores(store, describe_stage("auroc", ["red", "star"], "demo:clip-p8", SITE), wrong),
        publish_scores(store, describe_stage(NAMES, ["red", "star"], "demo:clip-rn", SITE), wrong),  # of its neurons
        publish_scores(store, describe_stage(NAMES, ["red", "star"], "demo:clip-rn", SITE, sae=SAE, seed=0), right),
        publish_scores(store, describe_stage(NAMES, ["red", "star"], "demo:clip-rn", SITE, sae=SAE, seed=1), wrong),
    ]
    pairs = sorted(
        {digest for zoo in zoos for name, digest in zoo.stage.inputs.items() if name.startswith(("pair", "self"))}
    )
    digests = [plan.digest for plan in (*zoos, *named)] + pairs
    published = [load_published(store, digest) for digest in digests]
    catalog = Catalog(store, tuple(found for found in published if found))
    assert len(catalog.stages) == len(digests)
    found = open_tables(store, zoos, ["rosetta_universality", "rosetta_cliques", "rosetta_entries"])
    buddies = [batch for digest in pairs for batch in StoreInputs(store).table(digest, "rosetta_buddies")]
    found.register("rosetta_buddies", pa.Table.from_batches(buddies))
    found.register(
        "unit_concepts", open_tables(store, named, ["unit_concepts"]).table("unit_concepts").to_arrow_table()
    )
    found.register("stages", catalog.as_table())
    return found


def test_cliques_come_with_their_units_zoo_by_zoo(lake: Lake) -> None:
    first, other, *rest = ask(lake, PAGE, "min_r, mean_r\nQUALIFY")
    assert (first["zoo"], first["clique"], first["size"], first["min_r"], first["mean_r"]) == (
        "zoo-all",
        0,
        3,
        0.7,
        0.82,
    )
    assert [tuple(unit.values()) for unit in first["units"]] == [L[0], S[0], T[0]] and rest == []
    assert (other["zoo"], other["clique"], other["size"], other["min_r"]) == ("zoo-two", 0, 2, 0.4)
    assert [tuple(unit.values()) for unit in other["units"]] == [L[1], S[0]]


def test_partners_of_a_unit_are_in_other_models_and_on_either_side_of_a_pair(lake: Lake) -> None:
    rows = [tuple(row.values()) for row in ask(lake, PAGE, "FROM edges")]
    assert rows == [
        ("zoo-all", *S[0], 0.9),
        ("zoo-all", *T[0], 0.85),
    ]  # of unit 0 of demo:clip-p16, the first model in the alphabet


def test_partners_of_a_unit_of_ones_own_are_told_for_each_zoo(lake: Lake) -> None:
    query = re.sub(
        r"SELECT model, sae, site, unit FROM rosetta_cliques.*",
        f"{own_unit('demo:clip-p8', SITE, 0)}",
        block(PAGE, "FROM edges"),
    )
    rows = [tuple(row.values()) for row in lake.sql(query).to_arrow_table().to_pylist()]
    assert rows == [("zoo-all", *L[0], 0.9), ("zoo-all", *T[0], 0.7), ("zoo-two", *L[1], 0.4)]


def own_unit(model: str, site: str, unit: int) -> str:
    """What the page says that `one` is for a unit of one's own, with this one in the place of its example."""
    (said,) = re.findall(r"`(SELECT 'demo[^`]*)`", (DOCS / PAGE).read_text())
    return (
        said.replace("'demo:clip-p8'", f"'{model}'")
        .replace("'mlp_act.3@patch'", f"'{site}'")
        .replace("17 AS", f"{unit} AS")
    )


def test_entries_have_the_names_of_their_units(lake: Lake) -> None:
    rows = ask(lake, PAGE, "FROM rosetta_entries")
    said = [(row["zoo"], row["models"], [(*tuple(unit.values()),) for unit in row["units"]]) for row in rows]
    assert said == [
        ("zoo-all", 3, [(*L[0], None), (*S[0], "red"), (*T[0], "red")]),
        ("zoo-two", 2, [(*L[1], None), (*S[0], "red")]),
    ]


def test_units_are_counted_by_how_many_models_of_a_zoo_have_them(lake: Lake) -> None:
    rows = [tuple(row.values()) for row in ask(lake, PAGE, "PARTITION BY stage, model, sae")]
    assert rows == [
        ("zoo-all", "demo:clip-p16", None, 2, 1, 0.063), ("zoo-all", "demo:clip-p16", None, 1, 3, 0.188),
        ("zoo-all", "demo:clip-p16", None, 0, 12, 0.75),
        ("zoo-all", "demo:clip-p8", None, 2, 1, 0.25), ("zoo-all", "demo:clip-p8", None, 1, 1, 0.25),
        ("zoo-all", "demo:clip-p8", None, 0, 2, 0.5),
        ("zoo-all", "demo:clip-rn", f"sae:{SAE}", 2, 1, 0.125), ("zoo-all", "demo:clip-rn", f"sae:{SAE}", 1, 2, 0.25),
        ("zoo-all", "demo:clip-rn", f"sae:{SAE}", 0, 5, 0.625),
        ("zoo-two", "demo:clip-p16", None, 1, 1, 0.063), ("zoo-two", "demo:clip-p16", None, 0, 15, 0.938),
        ("zoo-two", "demo:clip-p8", None, 1, 1, 0.25), ("zoo-two", "demo:clip-p8", None, 0, 3, 0.75),
    ]  # fmt: skip
    by_site = {
        (row["zoo"][4:], row["model"]): (row["in_two_others"], row["units"], row["most"])
        for row in ask(lake, PAGE, "in_two")
    }
    assert by_site == {
        ("all", "demo:clip-p8"): (1, 4, 2), ("all", "demo:clip-p16"): (1, 16, 2), ("all", "demo:clip-rn"): (1, 8, 2),
        ("two", "demo:clip-p8"): (0, 4, 1), ("two", "demo:clip-p16"): (0, 16, 1),
    }  # fmt: skip


def test_shared_units_have_the_names_that_one_variant_gives_either_of_them(lake: Lake) -> None:
    rows = [
        (row["zoo"][4:], row["unit_a"], row["called_a"], row["unit_b"], row["called_b"], row["r"])
        for row in ask(lake, PAGE, "called_a")
    ]
    assert rows == [
        ("all", 0, "red", 0, None, 0.9), ("all", 0, None, 0, "red", 0.85), ("all", 1, "red", 1, None, 0.8),
        ("all", 0, "red", 0, "red", 0.7), ("all", 2, None, 2, "star", 0.6), ("all", 3, None, 3, "star", 0.5),
        ("two", 0, "red", 1, None, 0.4),
    ]  # fmt: skip


def test_shared_units_are_held_against_sizes_and_against_others(lake: Lake) -> None:
    fits = ask(lake, PAGE, "regr_slope")
    slope = math.log(4 / 2) / math.log(
        16 / 4
    )  # neurons: 2 of 4 units are shared, and 4 of 16; in the other zoo 1 and 1
    assert fits[0] == {"zoo": "zoo-all", "models": 2, "slope": pytest.approx(slope), "r2": pytest.approx(1)}
    assert (fits[1]["zoo"], fits[1]["models"], fits[1]["slope"], len(fits)) == ("zoo-two", 2, pytest.approx(0), 2)
    rows = {(row["zoo"], row["model"], row["is_shared"]): row for row in ask(lake, PAGE, "AS is_shared")}
    assert len(rows) == 6 + 4
    said = [tuple(rows["zoo-all", "demo:clip-p8", shared].values())[4:] for shared in (True, False)]
    assert said == [
        pytest.approx((2, 0.13, 0.105)),
        pytest.approx((2, 0.63, 0.125)),
    ]  # of units 0 and 1, and of 2 and 3
