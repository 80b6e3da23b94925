"""Describe stages as their readers see them: each once, in an order of their own, and lists cut and sorted."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.inputs import StoreInputs
from cluster.stores.base import Store, make_store
from jobs.described import Units, about, find_described, read_lists
from jobs.protocol import Cell
from schemas.errors import BadSpec
from schemas.evaluate_specs import EvaluateSpec
from schemas.plans import Plan, Round, StageSpec
from tests.made_up_descriptions import describe_stage, publish_rows, publish_scores

MODEL, CONCEPTS = "demo:clip-p8", ("red", "green", "star")
SCORES = [[0.5, 0.9, None], [0.7, 0.1, 0.3], [0.7, None, 0.2], [None, None, None]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(str(tmp_path))


def test_lists_are_cut_and_sorted_by_whose_they_are_then_by_rank(store: Store) -> None:
    plan = publish_scores(store, describe_stage("act_values", CONCEPTS, MODEL), SCORES)
    found = read_lists(StoreInputs(store), plan.digest, "localise", 2)
    assert list(zip(found.concepts.tolist(), found.ranks.tolist(), found.units.tolist())) == [
        (0, 0, 1), (0, 1, 2), (1, 0, 0), (1, 1, 1), (2, 0, 1), (2, 1, 2),
    ]  # fmt: skip
    assert found.scores.tolist() == pytest.approx([0.7, 0.7, 0.9, 0.1, 0.3, 0.2])
    found = read_lists(StoreInputs(store), plan.digest, "describe", 1)
    assert list(zip(found.units.tolist(), found.concepts.tolist())) == [(0, 1), (1, 0), (2, 0)]


def test_a_stage_without_rows_has_empty_lists(store: Store) -> None:
    plan = publish_rows(store, describe_stage("act_values", CONCEPTS, MODEL), {"unit_concepts": []})
    found = read_lists(StoreInputs(store), plan.digest, "describe", 5)
    assert len(found.units) == len(found.concepts) == len(found.ranks) == len(found.scores) == 0


def test_stages_are_there_once_in_an_order_that_does_not_follow_the_reads(store: Store) -> None:
    sae = "a" * 20
    stages = [
        describe_stage("act_values", CONCEPTS, MODEL, tau=3),
        describe_stage("miclip in", CONCEPTS, MODEL, seed=0),
        describe_stage("miclip in", CONCEPTS, MODEL, seed=1),
        describe_stage("miclip in", CONCEPTS, MODEL, seed=0, sae=sae),
    ]
    plans = [publish_rows(store, stage) for stage in stages]
    spec = EvaluateSpec(reads=("a", "b"))
    one = find_described(Cell("judge", spec, MODEL, reads={"a": tuple(plans), "b": (plans[0],)}))
    other = find_described(Cell("judge", spec, MODEL, reads={"b": tuple(plans[:0:-1]), "a": (plans[0],)}))
    assert one == other and len(one) == 4
    assert [(d.units.unit_kind, d.method, d.variant.seed) for d in one] == [
        ("features", "miclip", 0), ("neurons", "act_values", None), ("neurons", "miclip", 0), ("neurons", "miclip", 1),
    ]  # fmt: skip
    assert one[0].units == Units("resid_post.3@patch", "features", f"sae:{sae}") and one[1].tau == 3
    assert str(one[0].units) == f"features of sae:{sae} at resid_post.3@patch" and one[1].concepts == CONCEPTS


def test_all_rows_of_a_stage_say_whose_units_they_are_about() -> None:
    features = describe_stage("miclip in", CONCEPTS, MODEL, seed=2, sae="a" * 20)
    assert about(features) == {
        "stage": features.digest, "model": MODEL, "site": "resid_post.3@patch", "unit_kind": "features",
        "sae": f"sae:{'a' * 20}", "method": "miclip", "variant": "miclip in", "seed": 2,
    }  # fmt: skip
    neurons = about(describe_stage("auroc", CONCEPTS, MODEL))
    assert (neurons["unit_kind"], neurons["sae"], neurons["seed"]) == ("neurons", None, None)
    assert about(describe_stage("auroc pool=max", CONCEPTS, MODEL))["method"] == "auroc"
    params = {"sites": ["resid_post.1@cls", "resid_post.2@cls"], "method": "miclip", "variant": "miclip in", "seed": 0}
    layers = StageSpec(kind="trace_errors", method=1, subject=MODEL, output="traces", params=params)
    assert about(layers) == {
        "stage": layers.digest, "model": MODEL, "method": "miclip", "variant": "miclip in", "seed": 0,
    }  # fmt: skip


def test_the_first_units_of_lists_are_as_many_as_are_asked_for_or_there() -> None:
    plan = make_plan(tau=4)
    (found,) = find_described(Cell("judge", EvaluateSpec(reads=("a",)), MODEL, reads={"a": (plan,)}))
    assert [found.first(tau, "stages.x.tau") for tau in (None, 4, 1)] == [4, 4, 1]
    with pytest.raises(
        BadSpec, match=r"^stages.x.tau: 5 units of a concept, but lists of .*auroc neurons have 4; describe with a"
    ):
        found.first(5, "stages.x.tau")


def make_plan(tau: int) -> Plan:
    stage = describe_stage("auroc", CONCEPTS, MODEL, tau=tau)
    return Plan(stage=stage, rounds=(Round(name="score", rows=1, shard_rows=1),), worker="describe")
