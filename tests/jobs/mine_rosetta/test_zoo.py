"""What is shared in a zoo of made-up members, against sets and loops over the same buddies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import combinations, product
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest

from cluster.stores.base import Store, make_store
from jobs.mine_rosetta.members import Member
from tests.jobs.mine_rosetta.made_up_zoo import (
    SAE,
    Key,
    MadeUp,
    Row,
    buddy,
    key,
    keys_of,
    make_member,
    mine,
    random_zoo,
    row_key,
)
from tests.made_up_descriptions import run_plans

Sets = dict[frozenset[Key], float]
MEMBERS = (
    make_member("demo:clip-p8", {"stage.1@map": 6, "stage.2@map": 5}),
    make_member("demo:clip-p8", {"stage.2@map": 8}, sae=SAE),
    make_member("demo:clip-rn", {"mlp_act.0@patch": 9}),
    make_member("timm:c", {"mlp_act.0@patch": 4, "mlp_act.1@patch": 3, "mlp_act.2@patch": 5}),
    make_member("timm:alone", {"stage.1@map": 3}),
)
A, A_SAE, B, C, ALONE = MEMBERS
LEFT_OUT = (key(A, "stage.2@map", 1), key(B, "mlp_act.0@patch", 3), key(A_SAE, "stage.2@map", 0))


def without_edges(zoo: MadeUp, *models: str) -> MadeUp:
    kept = {
        pair: [row for row in rows if row["model_a"] not in models and row["model_b"] not in models]
        for pair, rows in zoo.buddies.items()
    }
    return MadeUp(zoo.members, kept, zoo.dead, zoo.rare)


ZOO = without_edges(random_zoo(MEMBERS, seed=4, left_out=LEFT_OUT), "timm:alone")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Buddies that are made up differently have the same stages, so each zoo needs a store of its own."""
    return make_store(str(tmp_path))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    store = make_store(str(tmp_path_factory.mktemp("zoo")))
    return mine(store, ZOO.publish(store))


def neighbours(edges: Iterable[frozenset[Key]]) -> dict[Key, set[Key]]:
    near: dict[Key, set[Key]] = defaultdict(set)
    for edge in edges:
        one, other = edge
        near[one].add(other)
        near[other].add(one)
    return near


def all_cliques(edges: Sets, least: int) -> set[frozenset[Key]]:
    """Maximal sets of units that are all joined, grown one unit at a time from every edge."""
    near = neighbours(edges)
    grown = level = set(edges)
    while level:
        level = {clique | {unit} for clique in level for unit in set.intersection(*(near[u] for u in clique))}
        grown = grown | level
    return {c for c in grown if len(c) >= least and not set.intersection(*(near[unit] for unit in c))}


def grouped(rows: Iterable[Row], name: str) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[name]].append(row)
    return groups


def of_k(rows: Iterable[Row], k: int) -> list[Row]:
    return [row for row in rows if row["k"] == k]


@pytest.mark.parametrize("k", [1, 3])
def test_a_unit_has_as_many_buddies_models_as_sets_say_and_every_compared_unit_has_a_row(found: Any, k: int) -> None:
    edges = ZOO.edges(k)
    near = neighbours(edges)
    rows = {row_key(row): row for row in of_k(found["universality"], k)}
    assert set(rows) == {u for m in MEMBERS for u in keys_of(m)} - set(LEFT_OUT)
    assert len(rows) == len(of_k(found["universality"], k))
    for unit, row in rows.items():
        assert row["degree"] == len({other[0] for other in near[unit]})
        assert row["models"] == 3
        assert row["best_r"] == max((edges[frozenset((unit, other))] for other in near[unit]), default=None)
        assert row["kurtosis"] == unit[3] / 4 and row["active"] == pytest.approx(0.1 + unit[3] / 100)
        assert row["unit_kind"] == ("features" if unit[1] else "neurons")
    assert rows[key(C, "mlp_act.2@patch", 0)]["depth"] == 0.5
    assert {row["degree"] for unit, row in rows.items() if unit[0] == "timm:alone"} == {0}


@pytest.mark.parametrize("k", [1, 3])
def test_cliques_are_all_maximal_sets_of_mutual_buddies_of_different_models(found: Any, k: int) -> None:
    edges = ZOO.edges(k)
    by_number = grouped(of_k(found["cliques"], k), "clique")
    listed = [frozenset(row_key(row) for row in rows) for _, rows in sorted(by_number.items())]
    assert set(listed) == all_cliques(edges, 3) and len(listed) == len(set(listed)) > 0
    strengths = []
    for number, clique in enumerate(listed):
        inside = [edges[frozenset(pair)] for pair in combinations(clique, 2)]
        (size, low, middle, cut) = next(
            (row["size"], row["min_r"], row["mean_r"], row["is_truncated"]) for row in by_number[number]
        )
        assert size == len(clique) == len({unit[0] for unit in clique})
        assert (low, middle) == (min(inside), pytest.approx(mean(inside))) and not cut
        strengths.append((-size, -round(middle, 9)))
    assert strengths == sorted(strengths)


@pytest.mark.parametrize("k", [1, 3])
def test_components_are_what_chains_of_buddies_reach(found: Any, k: int) -> None:
    edges = ZOO.edges(k)
    near = neighbours(edges)
    rows = of_k(found["components"], k)
    assert len(rows) == len(near) and {row_key(row) for row in rows} == set(near)
    for own in grouped(rows, "component").values():
        units = {row_key(row) for row in own}
        distance = {unit: reach(near, unit) for unit in units}
        assert all(set(of_unit) == units for of_unit in distance.values())
        pairs = sum(one[0] != other[0] for one, other in combinations(units, 2))
        inside = sum(edge <= units for edge in edges)
        row = own[0]
        assert (row["units"], row["models"]) == (len(units), len({unit[0] for unit in units}))
        assert row["density"] == pytest.approx(inside / pairs)
        assert row["longest_path"] == max(max(d.values()) for d in distance.values()) and row["is_path_exact"]
    assert {row_key(row): row["core"] for row in rows} == {unit: core(near, unit) for unit in near}


def reach(near: dict[Key, set[Key]], start: Key) -> dict[Key, int]:
    steps, edge = {start: 0}, [start]
    for unit in edge:
        for other in near[unit] - set(steps):
            steps[other] = steps[unit] + 1
            edge.append(other)
    return steps


def core(near: dict[Key, set[Key]], unit: Key) -> int:
    best = 0
    for c in range(1, len(near)):
        kept = set(near)
        while poor := {u for u in kept if len(near[u] & kept) < c}:
            kept -= poor
        best = c if unit in kept else best
    return best


@pytest.mark.parametrize("k", [1, 3])
def test_layers_count_the_buddies_of_every_two_sites(found: Any, k: int) -> None:
    expected: dict[Any, list[float]] = {
        (a.model, a.sae and f"sae:{a.sae}", s.site, b.model, b.sae and f"sae:{b.sae}", t.site): []
        for a, b in combinations(MEMBERS, 2)
        if a.model != b.model
        for s, t in product(a.sites, b.sites)
    }
    order = {unit: n for n, unit in enumerate(u for m in MEMBERS for u in keys_of(m))}
    for edge, r in ZOO.edges(k).items():
        first, second = sorted(edge, key=lambda unit: order[unit])
        expected[(*first[:3], *second[:3])].append(r)
    rows = of_k(found["layers"], k)
    listed = {
        tuple(row[f"{n}_{side}"] for side in "ab" for n in ("model", "sae", "site")): (row["buddies"], row["r_p50"])
        for row in rows
    }
    assert listed == {
        sites: (len(r), pytest.approx(median(r)) if r else None) for sites, r in expected.items()
    } and len(rows) == len(expected)
    assert {(row["site_a"], row["depth_a"]) for row in rows if row["model_a"] == "timm:c"} == {
        ("mlp_act.0@patch", 0.0), ("mlp_act.1@patch", 0.25), ("mlp_act.2@patch", 0.5),
    }  # fmt: skip


def test_no_dead_unit_and_no_rare_one_is_anywhere(found: Any) -> None:
    for rows in found.values():
        units = {row_key(row) for row in rows if "unit" in row and "model" in row}
        assert not units & set(LEFT_OUT)


def test_nothing_is_tupled_around_an_anchor_where_one_model_has_no_buddies(found: Any) -> None:
    assert found["tuples"] == [] and found["clusters"] == []
    assert {row["jaccard"] for row in found["anchors"]} == {None}
    pairs = [(row["model_a"], row["sae_a"], row["model_b"]) for row in found["anchors"]]
    assert (
        len(pairs) == 9 and ("demo:clip-p8", None, "demo:clip-p8") not in pairs
    )  # neurons and latents of one model are not compared


def test_entries_are_the_strongest_cliques_that_share_no_unit(found: Any) -> None:
    cliques = grouped(of_k(found["cliques"], 3), "clique")
    taken: set[Key] = set()
    expected = []
    for _, rows in sorted(cliques.items()):
        units = frozenset(row_key(row) for row in rows)
        if not units & taken:
            taken |= units
            expected.append(units)
    entries = grouped(found["entries"], "entry")
    assert [frozenset(map(row_key, rows)) for _, rows in sorted(entries.items())] == expected and expected
    edges = ZOO.edges(3)
    for rows in entries.values():
        units = [row_key(row) for row in rows]
        strength = {u: mean(edges[frozenset((u, v))] for v in units if v != u) for u in units}
        assert {row_key(row): row["mean_r"] for row in rows} == pytest.approx(strength)
        (first,) = [row_key(row) for row in rows if row["is_representative"]]
        assert strength[first] == pytest.approx(max(strength.values()))
        assert {(row["origin"], row["size"], row["models"]) for row in rows} == {("clique", len(units), len(units))}
        demo = all(unit[0].startswith("demo:") for unit in units)
        assert {row["shares_training"] for row in rows} == {True if demo else None}


THREE = random_zoo((A, A_SAE, B, C), seed=7, left_out=LEFT_OUT)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    store = make_store(str(tmp_path_factory.mktemp("three")))
    return mine(store, THREE.publish(store))


def anchor_key(row: Row) -> Key:
    return row["anchor_model"], row["anchor_sae"], row["anchor_site"], row["anchor_unit"]


def best_tuples(zoo: MadeUp, anchor: Member) -> dict[Key, dict[str, tuple[Key, float, int]]]:
    """Anchor unit -> model -> its best buddy there, r, and how many others there are; units with one in all other models."""
    edges = zoo.edges(3)
    near = neighbours(edges)
    order = {unit: n for n, unit in enumerate(u for m in zoo.members for u in keys_of(m))}
    found = {}
    for unit in keys_of(anchor):
        by_model: dict[str, list[tuple[float, int, Key]]] = defaultdict(list)
        for other in near[unit]:
            by_model[other[0]].append((-edges[frozenset((unit, other))], order[other], other))
        if len(by_model) == len({m.model for m in zoo.members}) - 1:
            best = {model: (min(own), len(own) - 1) for model, own in by_model.items()}
            found[unit] = {model: (first[2], -first[0], others) for model, (first, others) in best.items()}
    return found


@pytest.mark.parametrize("anchor", THREE.members, ids=lambda member: member.name)
def test_a_tuple_is_a_unit_of_an_anchor_with_its_best_buddy_in_each_other_model(three: Any, anchor: Member) -> None:
    expected = best_tuples(THREE, anchor)
    rows = [
        row for row in three["tuples"]
        if (row["anchor_model"], row["anchor_sae"]) == (anchor.model, anchor.sae and f"sae:{anchor.sae}")
    ]  # fmt: skip
    listed: dict[Key, dict[str, tuple[Key, float, int]]] = defaultdict(dict)
    for row in rows:
        listed[anchor_key(row)][row["model"]] = (row_key(row), row["r"], row["alternatives"])
    assert listed == expected and expected
    strengths = {row["tuple"]: (-round(row["mean_r"], 9), -round(row["min_r"], 9)) for row in rows}
    assert sorted(strengths) == list(range(len(expected)))
    assert [strengths[n] for n in sorted(strengths)] == sorted(strengths.values())
    for row in rows:
        r = [value for _, value, _ in expected[anchor_key(row)].values()]
        assert (row["mean_r"], row["min_r"]) == (pytest.approx(mean(r)), min(r))


def test_anchors_agree_as_far_as_their_tuples_are_the_same_sets(three: Any) -> None:
    sets = {
        (m.model, m.sae and f"sae:{m.sae}"): {
            frozenset((unit, *(v[0] for v in t.values()))) for unit, t in best_tuples(THREE, m).items()
        }
        for m in THREE.members
    }
    for row in three["anchors"]:
        one, other = sets[row["model_a"], row["sae_a"]], sets[row["model_b"], row["sae_b"]]
        assert (row["tuples_a"], row["tuples_b"]) == (len(one), len(other))
        assert row["jaccard"] == pytest.approx(len(one & other) / len(one | other))
    assert len(three["anchors"]) == 5 and any(row["jaccard"] > 0 for row in three["anchors"])


def test_units_of_an_anchor_with_tuples_are_clustered_by_the_buddies_among_themselves(three: Any) -> None:
    for m, anchor in enumerate(THREE.members):
        shared = set(best_tuples(THREE, anchor))
        inside = {
            frozenset((row_key(row, "_a"), row_key(row, "_b"))): row["r"]
            for row in THREE.buddies[m, m]
            if not row["is_below_null"] and {row_key(row, "_a"), row_key(row, "_b")} <= shared
        }
        near = neighbours(inside)
        expected = {frozenset(reach(near, unit)) for unit in shared}
        name = (anchor.model, anchor.sae and f"sae:{anchor.sae}")
        rows = [row for row in three["clusters"] if (row["anchor_model"], row["anchor_sae"]) == name]
        listed = grouped(rows, "cluster")
        assert {frozenset((*name, r["site"], r["unit"]) for r in own) for own in listed.values()} == expected
        for own in listed.values():
            units = {(*name, row["site"], row["unit"]) for row in own}
            r = [value for edge, value in inside.items() if edge <= units]
            assert {row["min_r"] for row in own} == {min(r, default=None)}
            assert {row["size"] for row in own} == {len(units)} and not own[0]["is_split"]
            possible = len(units) * (len(units) - 1) / 2
            assert own[0]["density"] == pytest.approx(len(r) / possible if possible else 1)


def test_lists_that_are_cut_short_say_so(store: Store) -> None:
    whole, cut = (mine(store, THREE.publish(store, tuples="full", most=most)) for most in (1000, 5))
    assert {row["is_truncated"] for row in whole["tuples"]} == {False}
    edges = THREE.edges(3)
    near = neighbours(edges)
    of_a = [
        frozenset((unit, b, c))
        for unit in keys_of(A)
        for b in near[unit]
        if b[0] == "demo:clip-rn"
        for c in near[unit]
        if c[0] == "timm:c"
    ]
    rows = [row for row in whole["tuples"] if (row["anchor_model"], row["anchor_sae"]) == ("demo:clip-p8", None)]
    listed = [frozenset((anchor_key(own[0]), *map(row_key, own))) for own in grouped(rows, "tuple").values()]
    assert len(listed) == len(of_a) > 5 and set(listed) == set(of_a)
    for name, per in (("tuples", "tuple"), ("cliques", "clique")):
        rows = [
            row
            for row in cut[name]
            if row.get("anchor_model", "demo:clip-rn") == "demo:clip-rn" and row.get("k", 3) == 3
        ]
        assert {row[per] for row in rows} == set(range(5)) and {row["is_truncated"] for row in rows} == {True}
    of = ("anchor_model", "anchor_sae", "site", "unit", "cluster")  # what is listed decides no cluster
    assert [[row[n] for n in of] for row in cut["clusters"]] == [[row[n] for n in of] for row in whole["clusters"]]


def test_entries_of_clusters_show_each_unit_once_and_take_anchors_in_turn(store: Store) -> None:
    a, b, c = ([key(m, m.sites[0].site, unit) for unit in range(4)] for m in (A, B, C))
    stars = [
        (0, 1, [buddy(a[i], b[i], 0.9 - i / 10) for i in range(4)]),
        (0, 2, [buddy(a[i], c[i], 0.9 - i / 10) for i in range(3)]),  # so that 3 has a tuple around B alone
        (1, 2, [buddy(b[i], c[i], 0.9 - i / 10) for i in range(4)]),
        (0, 0, [buddy(a[0], a[1], 0.5)]),
    ]
    zoo = MadeUp((A, B, C), {(one, other): rows for one, other, rows in stars})
    found = mine(store, zoo.publish(store, entries_from="clusters"))
    shown = [
        (own[0]["origin"], own[0]["size"], own[0]["models"], {row_key(row) for row in own})
        for own in grouped(found["entries"], "entry").values()
    ]
    assert shown == [
        ("cluster of demo:clip-p8", 6, 3, {a[0], b[0], c[0], a[1], b[1], c[1]}),
        ("cluster of demo:clip-p8", 3, 3, {a[2], b[2], c[2]}),
        ("cluster of demo:clip-rn", 3, 3, {a[3], b[3], c[3]}),
    ]
    few = mine(store, zoo.publish(store, entries_from="clusters", entries=1))
    assert {row_key(row) for row in few["entries"]} == shown[0][3]


def test_anchors_alone_have_tuples(store: Store) -> None:
    found = mine(store, THREE.publish(store, anchors=["demo:clip-rn"]))
    assert {row["anchor_model"] for row in found["tuples"]} == {"demo:clip-rn"} and found["anchors"] == []


def test_without_anchors_there_are_cliques_and_entries_of_them_and_no_tuples(store: Store) -> None:
    found = mine(store, THREE.publish(store, anchors="none"))
    assert found["tuples"] == found["anchors"] == found["clusters"] == []
    assert found["cliques"] and {row["origin"] for row in found["entries"]} == {"clique"}


def test_neighbours_by_size_of_r_count_what_falls_as_alike(store: Store) -> None:
    members = (A, B)
    a, b = key(A, "stage.1@map", 0), key(B, "mlp_act.0@patch", 5)
    found = mine(store, MadeUp(members, {(0, 1): [buddy(a, b, -0.9)]}).publish(store, k=1, rank_by="abs_r"))
    (row,) = [row for row in found["universality"] if row_key(row) == a]
    assert (row["k"], row["best_r"], row["degree"]) == (1, 0.9, 1)


def test_cliques_of_two_models_are_their_pairs_and_rare_units_stay_if_they_are_kept(store: Store) -> None:
    a, b = key(A, "stage.1@map", 0), key(B, "mlp_act.0@patch", 5)
    zoo = MadeUp((A, B), {(0, 1): [buddy(a, b, 0.9)]}, rare=frozenset({a}))
    found = mine(store, zoo.publish(store, k=1, rare="keep"))
    assert [row_key(row) for row in found["cliques"]] == [a, b]
    assert len(found["universality"]) == 11 + 9
    assert [row["is_representative"] for row in found["entries"]] == [True, False]


def test_a_zoo_without_any_buddies_has_units_and_nothing_else(store: Store) -> None:
    found = mine(store, MadeUp((A, B, C), {}).publish(store))
    assert {name for name, rows in found.items() if rows} == {"universality", "layers", "anchors"}
    assert {row["degree"] for row in found["universality"]} == {0}


def test_units_of_a_site_that_a_member_has_not_are_refused(store: Store) -> None:
    a, b = ("demo:clip-p8", None, "elsewhere.1@map", 0), key(B, "mlp_act.0@patch", 5)
    plan = MadeUp((A, B), {(0, 1): [buddy(a, b, 0.9)]}).publish(store)
    (failed,) = run_plans(store, [plan]).of("shard_failed")
    assert "elsewhere.1@map, which is no site of demo:clip-p8" in failed["message"]
