"""How work is cut, killed and gone on with changes no number; what is looked at once; and what stops a measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from cluster.events import EventLog
from cluster.executor import SerialExecutor, StopFlag
from cluster.run import run_stages
from miclip_core.explain.makers import WorldMaker
from miclip_core.explain.segmenters import WorldSegmenter
from schemas.errors import Interrupted
from schemas.plans import Plan, Resources
from tests.jobs.score_explanations.conftest import World
from tests.jobs.score_explanations.lake_of_texts import STEERING, TOPK, TextLake, texts_of

MEASURES = ("explanation_iou", "explanation_clip", "explanation_synthetic", "explanation_naming")
TABLES = (
    *MEASURES, "explanation_scores", "explanation_summary", "explanation_tests", "explanation_agreement",
    "selected_explanations",
)  # fmt: skip


def contents(lake: TextLake, plans: Sequence[Plan]) -> dict[str, list[str]]:
    return {table: sorted(map(repr, lake.rows(plans, table))) for table in TABLES}


def run_until(lake: TextLake, plans: Sequence[Plan], shards: int) -> int:
    """Run stages and stop after so many shards, as a kill would; how many were done."""
    stop, done = StopFlag(), []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "shard_done":
            done.append(event)
            if len(done) == shards:
                stop.stop("test")

    todo = [(plan, Resources(workers=1)) for plan in plans]
    with suppress(Interrupted):
        run_stages(todo, lake.store, SerialExecutor(lake.store.uri), EventLog(listen), stop)
    return len(done)


def measures(plans: Sequence[Plan]) -> list[Plan]:
    return [plan for plan in plans if plan.stage.output != "summary"]


@pytest.mark.parametrize("shard_features", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_shards_of_any_size_killed_anywhere_give_the_same_numbers(
    world: World, tmp_path: Path, shard_features: int
) -> None:
    lake = world.unscored.copy(tmp_path / "lake")
    plans = lake.plans(world.explained, labels="world", shard_features=shard_features)
    assert [plan.digest for plan in plans] == [plan.digest for plan in world.plans]
    killed = [run_until(lake, measures(plans), shards) for shards in (1, 4, 7)]
    assert all(0 < count <= shards for count, shards in zip(killed, (1, 4, 7), strict=True))
    ran = lake.score(plans)
    assert not ran.board.failed
    assert contents(lake, plans) == contents(world.lake, world.plans)


def test_a_stage_alone_gives_what_it_gives_beside_others(world: World, tmp_path: Path) -> None:
    lake = world.unscored.copy(tmp_path / "lake")
    alone = [next(plan for plan in world.plans if plan.stage.output == output) for output in ("iou", "synthetic")]
    lake.score(alone)
    for plan, table in zip(alone, ("explanation_iou", "explanation_synthetic"), strict=True):
        assert lake.rows([plan], table) == world.lake.rows([plan], table) != []


def test_every_text_is_looked_for_once_in_an_image_and_its_images_are_made_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, drawn = Counter[tuple[int | None, str]](), Counter[tuple[str, int]]()
    masks, make = WorldSegmenter.masks, WorldMaker.make

    def count_masks(self: WorldSegmenter, pixels_CIJ: Tensor, image: int | None, text: str) -> Tensor:
        looked[image, text] += 1
        return masks(self, pixels_CIJ, image, text)

    def count_images(self: WorldMaker, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        drawn.update(zip(texts, seeds, strict=True))
        return make(self, texts, seeds)

    monkeypatch.setattr(WorldSegmenter, "masks", count_masks)
    monkeypatch.setattr(WorldMaker, "make", count_images)
    lake = world.unscored.copy(tmp_path / "lake")
    plans = lake.plans(world.explained, shard_features=5, metrics=["iou", "synthetic"])
    lake.score(measures(plans))
    texts = {row["text"] for row in world.texts() if row["status"] == "ok"}
    of_features = {(row["feature"], row["text"]) for row in world.texts() if row["status"] == "ok"}
    assert set(looked.values()) == set(drawn.values()) == {1}
    assert {text for _, text in looked} == texts and len(drawn) == 2 * len(of_features)
    assert 2 * len(lake.rows(plans, "explanation_iou")) > 3 * len(looked)


# ---------------------------------------------------------------- what stops it


def failures(lake: TextLake, plans: Sequence[Plan]) -> dict[str, str]:
    """Run stages; which of their outputs failed, and how."""
    by_digest = {plan.digest: plan.stage.output for plan in plans}
    failed = lake.score(plans).board.failed
    return {by_digest[key.partition("/")[0]]: f"{f.error}: {f.message}" for key, f in failed.items()}


def test_images_that_explanations_were_made_from_are_refused(world: World, tmp_path: Path) -> None:
    lake = world.unscored.copy(tmp_path / "lake")

    def from_the_same(plan: Plan) -> Plan:
        """What planning would make if another index had the very images to score on."""
        inputs = {n: plan.stage.inputs["index"] if n.startswith("shown.") else d for n, d in plan.stage.inputs.items()}
        return plan.model_copy(update={"stage": plan.stage.model_copy(update={"inputs": inputs})})

    plans = [from_the_same(plan) for plan in measures(lake.plans(world.explained[:1], on_shared="stop"))]
    failed = failures(lake, plans)
    assert failed.keys() == {"iou", "clip", "synthetic", "naming", "random"}
    for said in failed.values():
        assert said.startswith(
            "ImagesShared: 40 of the 48 images to score on are among those that explanations were made"
        )
        assert "the first: world:seed=1,n=48#0, " in said and "images of its own, or on_shared: leave_out" in said


def test_a_single_image_in_both_sets_stops_scoring_unless_it_may_be_left_out(world: World, tmp_path: Path) -> None:
    lake = world.unscored.copy(tmp_path / "lake")
    failed = failures(lake, measures(lake.plans(world.explained[:1], on_shared="stop", metrics=["iou"])))
    assert "ImagesShared: 1 of the 48 images" in failed["iou"]
    assert failures(lake, measures(lake.plans(world.explained[:1], on_shared="leave_out", metrics=["iou"]))) == {}


def test_features_that_no_two_ways_explain_or_that_all_chose_an_alpha_leave_nothing_to_score(
    world: World, tmp_path: Path
) -> None:
    lake = world.unscored.copy(tmp_path / "lake")
    apart = [lake.explain(TOPK, {1: "A red object", 2: "A star"}), lake.explain(STEERING, {3: "A star"})]
    failed = failures(lake, lake.plans(apart, metrics=["iou"]))
    assert [*failed] == ["summary"]
    assert "NothingToScore: no feature is explained in every way: 3 by some, 1 by steering" in failed["summary"]
    used = [lake.explain(TOPK, texts_of(TOPK)), lake.explain(STEERING, texts_of(STEERING), validation=range(12))]
    failed = failures(lake, lake.plans(used, metrics=["iou"]))
    assert "NothingToScore: alphas were chosen on all 12 features" in failed["summary"]
    assert failures(lake, lake.plans(used, metrics=["iou"], scored="all")) == {}


def test_texts_that_are_all_refused_have_no_score_and_choose_nothing(world: World, tmp_path: Path) -> None:
    lake = world.unscored.copy(tmp_path / "lake")
    explained = [
        lake.explain(TOPK, dict.fromkeys(range(4))),
        lake.explain(STEERING, {**dict.fromkeys(range(3)), 3: "A star"}),
    ]
    plans = lake.plans(explained, labels="world")
    assert not lake.score(plans).board.failed
    assert {row["feature"] for row in lake.rows(plans, "selected_explanations")} == {3}
    for row in lake.rows(plans, "explanation_summary"):
        naming = {"topk": (1, 1), "steering": (1, 0)}  # of the one feature that tells a concept and has a text
        others = {"topk": (0, 4), "steering": (1, 3)}
        expected = naming if row["metric"] in ("named", "share_named") else others
        assert (row["n"], row["n_empty"]) == expected[row["method"]], row["metric"]
        assert (row["value"] is None) == (row["n"] == 0)
    assert all(row["p"] is None for row in lake.rows(plans, "explanation_tests"))
    assert all(row["n"] == 0 and row["value"] is None for row in lake.rows(plans, "explanation_agreement"))


def test_without_scores_of_single_texts_nothing_is_chosen_or_tested(world: World, tmp_path: Path) -> None:
    lake = world.unscored.copy(tmp_path / "lake")
    plans = lake.plans(world.explained, metrics=["naming"])
    assert not lake.score(plans).board.failed
    assert {row["metric"] for row in lake.rows(plans, "explanation_summary")} == {"named", "share_named"}
    for table in ("selected_explanations", "explanation_tests", "explanation_agreement"):
        assert not lake.rows(plans, table)
    scores = lake.rows(plans, "explanation_scores")
    assert scores and all(row["iou"] is row["clip"] is row["synthetic"] is row["auroc"] is None for row in scores)
    assert all(row["abstraction"] is None for row in scores)
