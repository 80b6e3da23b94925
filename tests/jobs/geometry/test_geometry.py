"""Geometry over made-up encoders and lists: points and figures by hand, SAE latents, world's groups, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cluster.stores.base import Store, make_store
from jobs.geometry.plan import estimate, make_plans
from jobs.protocol import Cell, Known
from miclip_core.zoo.load import inspect_model
from schemas.errors import BadSpec
from schemas.evaluate_specs import GeometrySpec
from schemas.models import ModelFacts
from schemas.plans import Plan
from schemas.refs import ModelRef
from tests.made_up_descriptions import (
    describe_stage,
    publish_encoder,
    publish_rows,
    publish_sae,
    publish_scores,
    rows_of,
    run_plans,
)

MODEL, SITE = "demo:clip-p8", "resid_post.3@patch"
CONCEPTS = ("red", "green", "circle", "star", "water")
# colours lie along x, shapes along y; unit 6 has no direction and unit 7 stands for both
DIRECTIONS = [[1, 0, 0], [2, 0.1, 0], [3, 0, 0.1], [0, 1, 0], [0, 2, 0.1], [0.1, 1, 0], [0, 0, 0], [1, 1, 0], [1, 0, 1]]
SCORES = [
    [0.9, 0.2, None, None, None],
    [0.8, 0.9, None, None, None],
    [None, 0.5, None, None, None],
    [None, None, 0.9, 0.1, None],
    [None, None, 0.7, None, None],
    [None, None, None, 0.6, None],
    [0.1, None, None, None, None],
    [0.7, None, None, 0.5, None],
    [None, None, None, None, 0.9],
]


@cache
def facts() -> ModelFacts:
    return inspect_model(ModelRef.parse(MODEL))


def known() -> Known:
    return Known({MODEL: facts()}, {})


def cell(*read: Plan, **spec: Any) -> Cell:
    return Cell(
        "shape", GeometrySpec(reads=("named",), neighbours=2, permutations=20, **spec), MODEL, reads={"named": read}
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path))


def publish_units(store: Store, tau: int = 5, concepts: tuple[str, ...] = CONCEPTS, sae: str | None = None) -> Plan:
    encoder = publish_encoder(store, MODEL, SITE, DIRECTIONS)
    stage = describe_stage("miclip in+out", concepts, MODEL, SITE, seed=3, tau=tau, sae=sae, encoder=encoder)
    return publish_scores(store, stage, SCORES)


def test_points_and_figures_are_those_of_the_units_found_for_one_group(store: Store) -> None:
    """Units 0, 1 and 2 are colours, 3, 4 and 5 shapes: each one's two nearest are its own, and none of the others near."""
    (plan,) = make_plans(cell(publish_units(store)), known())
    ran = run_plans(store, [plan])
    assert not ran.board.failed
    points = sorted(rows_of(store, plan, "geometry_points"), key=lambda row: row["unit"])
    assert [(p["unit"], p["group"], p["concept"]) for p in points] == [
        (0, "colour", "red"),
        (1, "colour", "green"),
        (2, "colour", "green"),
        (3, "shape", "circle"),
        (4, "shape", "circle"),
        (5, "shape", "star"),
        (6, "colour", "red"),
    ]
    assert [p["unit"] for p in points if p["x"] is None or p["y"] is None] == [6]
    (row,) = rows_of(store, plan, "geometry_summary")
    assert {name: row[name] for name in ("site", "sae", "unit_kind", "variant", "seed")} == {
        "site": SITE, "sae": None, "unit_kind": "neurons", "variant": "miclip in+out", "seed": 3,
    }  # fmt: skip
    assert (row["groups"], row["units"], row["neighbours"], row["purity"]) == (2, 6, 2, 1.0)
    assert row["purity_chance"] == pytest.approx((3 * 2 + 3 * 2) / (6 * 5))
    assert row["silhouette"] > 0.8 and 1 / 21 <= row["purity_p"] < 0.5
    assert (row["concepts_ungrouped"], row["concepts_ambiguous"], row["units_shared"]) == (1, 0, 1)


def test_a_shorter_list_leaves_units_out_and_a_longer_one_than_is_there_is_refused(store: Store) -> None:
    named = publish_units(store)
    short, whole, same = (make_plans(cell(named, tau=tau), known())[0] for tau in (1, None, 5))
    assert same.digest == whole.digest and whole.stage.params["tau"] == 5
    with pytest.raises(
        BadSpec, match=r"stages\.shape\.tau: 50 units of a concept, but lists of .*miclip.* have 5; describe"
    ):
        make_plans(cell(named, tau=50), known())
    run_plans(store, [short])
    assert [(p["unit"], p["concept"]) for p in rows_of(store, short, "geometry_points")] == [
        (0, "red"), (1, "green"), (3, "circle"), (5, "star"),
    ]  # fmt: skip


def test_groups_of_ones_own_leave_out_what_is_in_several_and_note_what_is_in_none_of_the_lists(store: Store) -> None:
    groups = {"warm": ("red",), "cold": ("green", "water"), "other": ("green", "snow")}
    (plan,) = make_plans(cell(publish_units(store), groups=groups), known())
    ran = run_plans(store, [plan])
    (row,) = rows_of(store, plan, "geometry_summary")
    assert (row["concepts_ungrouped"], row["concepts_ambiguous"], row["groups"]) == (2, 1, 2)
    points = rows_of(store, plan, "geometry_points")
    assert [p["unit"] for p in points if p["x"] is None] == [6]
    assert {p["unit"]: p["group"] for p in points} == {
        0: "warm", 1: "warm", 6: "warm", 7: "warm", 8: "cold",
    }  # fmt: skip
    assert any("1 concepts of the groups have no units: snow" in str(event) for event in ran.events)


def test_latents_lie_where_the_encoder_puts_their_decoder_rows(store: Store) -> None:
    """Latents are the channels in another order, so they lie where those do."""
    turned = [[float(i == (u + 3) % 9) for i in range(9)] for u in range(9)]
    sae = publish_sae(store, MODEL, SITE, turned)
    named = publish_units(store, sae=sae)
    (plan,) = make_plans(cell(named), known())
    assert not run_plans(store, [plan]).board.failed
    (row,) = rows_of(store, plan, "geometry_summary")
    assert (row["sae"], row["unit_kind"]) == (f"sae:{sae}", "features")
    # of units 0 to 6 latent 3 is channel 6, which has no direction; 0, 1, 2 are along y, and 5 is unlike 4 and alone
    assert row["units"] == 6
    assert [p["unit"] for p in rows_of(store, plan, "geometry_points") if p["x"] is None] == [3]


def test_an_sae_of_another_site_is_refused_by_name(store: Store) -> None:
    sae = publish_sae(store, MODEL, "resid_post.1@patch", [[float(i == u) for i in range(9)] for u in range(9)])
    (plan,) = make_plans(cell(publish_units(store, sae=sae)), known())
    ran = run_plans(store, [plan])
    (outcome,) = ran.board.failed.values()
    assert outcome.error == "BadAlignment" and "resid_post.1" in outcome.message and "resid_post.3" in outcome.message


def test_few_units_have_no_layout_and_one_group_no_figures(store: Store) -> None:
    encoder = publish_encoder(store, MODEL, SITE, DIRECTIONS)
    stage = describe_stage("miclip in", CONCEPTS, MODEL, SITE, encoder=encoder)
    named = publish_scores(store, stage, [[0.5, None, None, None, None], [None, 0.4, None, None, None]])
    (plan,) = make_plans(cell(named), known())
    ran = run_plans(store, [plan])
    (row,) = rows_of(store, plan, "geometry_summary")
    figures = ("silhouette", "silhouette_p", "purity", "purity_p", "purity_chance")
    assert (row["groups"], row["units"], [row[name] for name in figures]) == (1, 2, [None] * 5)
    assert [(p["unit"], p["x"]) for p in rows_of(store, plan, "geometry_points")] == [(0, None), (1, None)]
    assert any("no layout (2 of 2 units" in str(event) for event in ran.events)


def test_a_stage_that_found_no_unit_has_a_summary_of_nothing(store: Store) -> None:
    encoder = publish_encoder(store, MODEL, SITE, DIRECTIONS)
    named = publish_rows(
        store, describe_stage("miclip in", CONCEPTS, MODEL, SITE, encoder=encoder), {"unit_concepts": []}
    )
    (plan,) = make_plans(cell(named), known())
    assert not run_plans(store, [plan]).board.failed
    (row,) = rows_of(store, plan, "geometry_summary")
    assert (row["groups"], row["units"], row["purity"]) == (0, 0, None)
    assert rows_of(store, plan, "geometry_points") == []


def test_the_same_stages_give_the_same_bytes(store: Store, tmp_path: Path) -> None:
    other = make_store(str(tmp_path / "other"))
    digests = []
    for place in (store, other):
        (plan,) = make_plans(cell(publish_units(place)), known())
        run_plans(place, [plan])
        digests.append({key: place.get(key) for key in place.list("tables") if "geometry" in key})
    assert digests[0] == digests[1] and len(digests[0]) == 2


def test_what_has_no_geometry_is_refused_at_planning(store: Store) -> None:
    other = publish_scores(store, describe_stage("act_values", CONCEPTS, MODEL), SCORES)
    with pytest.raises(BadSpec, match=r"stages\.shape\.reads: found act_values of demo:clip-p8; expected .*miclip"):
        make_plans(cell(other), known())
    colours = describe_stage("miclip in", ("red", "green"), MODEL, encoder="0" * 20)
    with pytest.raises(BadSpec, match=r"stages\.shape\.groups: found colour with a concept among .*red, green"):
        make_plans(cell(publish_rows(store, colours)), known())
    with pytest.raises(BadSpec, match="expected at least two"):
        make_plans(cell(publish_rows(store, colours), groups={"a": ("cat",), "b": ("dog",)}), known())


def test_each_variant_is_a_stage_and_other_methods_are_ignored(store: Store) -> None:
    ours = [describe_stage("miclip in", CONCEPTS, MODEL, seed=seed, encoder="0" * 20) for seed in (0, 1)]
    others = describe_stage("act_values", CONCEPTS, MODEL)
    read = [publish_rows(store, stage) for stage in (*ours, others)]
    plans = make_plans(cell(*read), known())
    assert [plan.stage.inputs["units"] for plan in plans] == [stage.digest for stage in ours]
    assert [plan.stage.params["seed"] for plan in plans] == [0, 1]
    assert estimate(plans[0], known()).worker_memory > 0
    changed = make_plans(replace(cell(*read[:1]), spec=GeometrySpec(reads=("named",), neighbours=3)), known())
    assert changed[0].digest != plans[0].digest
