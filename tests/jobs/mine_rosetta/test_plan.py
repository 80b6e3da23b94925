"""What a zoo of models becomes: a stage per member, per pair and for all, each known by what it is made of."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.planned import PlannedPipeline, plan_pipeline, title
from cluster.works import Work
from jobs.kinds import get_kind
from schemas.errors import BadSpec, TooFewImages
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import Plan, Resources
from tests.lakes import Lake

ZOO = ("demo:clip-p8", "demo:clip-rn", "demo:clip-p16")
INSPECTED = (*ZOO, "demo:resnet-sup")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Models that are inspected and an index of 64 images."""
    lake = Lake(tmp_path_factory.mktemp("zoo") / "lake")
    stage = {"kind": "extract", "outputs": ["embeddings"], "batch_size": 64}
    lake.run(pipeline(INSPECTED, images="world:seed=0,n=64", stages={"acts": stage}))
    return lake


def pipeline(models: tuple[str, ...] = ZOO, images: str = "world:seed=0,n=64", **changes: Any) -> PipelineSpec:
    stages = changes.pop("stages", None) or {"shared": {"kind": "mine_rosetta", **changes}}
    data = {"kind": "pipeline", "name": "t", "images": {"ref": images}, "matrix": {"model": models}, "stages": stages}
    return PipelineSpec.model_validate(data, strict=False)


def planned(lake: Lake, *args: Any, **changes: Any) -> PlannedPipeline:
    return plan_pipeline(pipeline(*args, **changes), lake.store)


def plans(found: PlannedPipeline) -> dict[str, Plan]:
    return {plan.digest: plan for cell in found.cells for plan in cell.plans}


def by_output(found: PlannedPipeline, output: str) -> list[Plan]:
    return [plan for plan in plans(found).values() if plan.stage.output == output]


def test_a_zoo_has_a_cell_per_model_per_pair_and_for_all(lake: Lake) -> None:
    cells = [title(cell) for cell in planned(lake).cells]
    assert cells == [
        "shared/demo:clip-p8",
        "shared/demo:clip-rn",
        "shared/demo:clip-p16",
        "shared/demo:clip-p8+demo:clip-rn",
        "shared/demo:clip-p8+demo:clip-p16",
        "shared/demo:clip-rn+demo:clip-p16",
        "shared",
    ]


def test_three_models_are_three_stages_of_units_six_pairs_with_themselves_a_zoo_and_a_dictionary(lake: Lake) -> None:
    found = planned(lake)
    assert [len(by_output(found, o)) for o in ("units", "pair", "zoo", "dictionary")] == [3, 6, 1, 1]
    everything = plans(found)
    for pair in by_output(found, "pair"):
        assert {everything[pair.stage.inputs[side]].stage.output for side in "ab"} == {"units"}
    (zoo,) = by_output(found, "zoo")
    assert len(zoo.stage.inputs) == 3 + 3 + 3 and set(zoo.stage.inputs.values()) <= set(everything)
    assert by_output(found, "dictionary")[0].stage.inputs["zoo"] == zoo.digest


def test_every_work_of_a_zoo_has_a_title_of_its_own(lake: Lake) -> None:
    titles = [Work((plan,), Resources()).title for plan in plans(planned(lake, ZOO[:2])).values()]
    assert titles == [
        "mine_rosetta demo:clip-p8 units neurons",
        "mine_rosetta demo:clip-p8 pair neurons with itself",
        "mine_rosetta demo:clip-rn units neurons",
        "mine_rosetta demo:clip-rn pair neurons with itself",
        "mine_rosetta demo:clip-p8 + demo:clip-rn pair neurons and neurons",
        "mine_rosetta zoo-shared zoo",
        "mine_rosetta zoo-shared dictionary",
    ]


def test_adding_a_model_to_a_zoo_of_three_plans_three_new_pairs_and_nothing_else_but_its_own(lake: Lake) -> None:
    before, after = plans(planned(lake)), planned(lake, INSPECTED)
    new = [plan for digest, plan in plans(after).items() if digest not in before]
    assert sorted((p.stage.output, p.stage.subject) for p in new) == [
        ("dictionary", "zoo-shared"),
        ("pair", "demo:clip-p16 + demo:resnet-sup"),
        ("pair", "demo:clip-p8 + demo:resnet-sup"),
        ("pair", "demo:clip-rn + demo:resnet-sup"),
        ("pair", "demo:resnet-sup"),
        ("units", "demo:resnet-sup"),
        ("zoo", "zoo-shared"),
    ]


def test_pairs_along_an_axis_are_of_the_units_of_their_own_setting(lake: Lake) -> None:
    stages = {"shared": {"kind": "mine_rosetta", "rare": "keep"}}
    whole = pipeline(ZOO[:2], stages=stages).model_dump(mode="json", exclude_unset=True)
    whole["matrix"]["min_active_images"] = [5, 9]
    whole["stages"]["shared"]["over"] = "min_active_images"
    cells = plan_pipeline(PipelineSpec.model_validate(whole, strict=False), lake.store).cells
    units = {plan.digest: cell.cell.at for cell in cells for plan in cell.plans if plan.stage.output == "units"}
    pairs = [(cell.cell.at, plan) for cell in cells if cell.cell.pair for plan in cell.plans]
    assert len(pairs) == 2 and all(units[plan.stage.inputs[one]] == at for at, plan in pairs for one in "ab")


def test_effort_changes_no_digest_and_every_result_field_of_a_pair_does(lake: Lake) -> None:
    usual = {p.digest for p in by_output(planned(lake), "pair")}
    for effort in ({"budget_gb": 0.3}, {"maps": "recompute"}, {"batch_size": 8}, {"shard_rows": 7}, {"cache_gb": 1.0}):
        assert {p.digest for p in by_output(planned(lake, **effort), "pair")} == usual, effort
    for result in (
        {"k": 3},
        {"margin": 4},
        {"grid": [4, 4]},
        {"chance_shift": 3},
        {"rare": "keep"},
        {"precision": "fp16"},
    ):
        assert not {p.digest for p in by_output(planned(lake, **result), "pair")} & usual, result


def test_each_model_takes_the_sites_that_it_has(lake: Lake) -> None:
    found = planned(lake, sites=["mlp_act.-1@map", "stage.*"])
    sites = {p.stage.subject: [s["site"] for s in p.stage.params["sites"]] for p in by_output(found, "units")}  # type: ignore[index,union-attr]
    assert sites["demo:clip-p8"] == ["mlp_act.4@patch"]
    assert sites["demo:clip-rn"] == ["stage.1@map", "stage.2@map", "stage.3@map", "stage.4@map"]


def test_anchors_alone_are_compared_with_themselves(lake: Lake) -> None:
    found = planned(lake, anchors="demo:clip-rn")
    assert [p.stage.subject for p in by_output(found, "pair") if " + " not in p.stage.subject] == ["demo:clip-rn"]


def test_without_anchors_no_model_is_compared_with_itself(lake: Lake) -> None:
    found = planned(lake, anchors="none")
    assert {p.stage.subject for p in by_output(found, "pair") if " + " not in p.stage.subject} == set()
    (zoo,) = by_output(found, "zoo")
    assert zoo.stage.params["anchors"] == [] and len(zoo.stage.inputs) == 3 + 3
    assert {p.digest for p in by_output(found, "pair")} < {p.digest for p in by_output(planned(lake), "pair")}
    assert plans(planned(lake, anchors="all")) == plans(planned(lake, anchors=[])) == plans(planned(lake))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sites": ["mlp_act.*"]}, "demo:clip-rn .* has no map there; its maps are stem, conv, stage"),
        ({"sites": ["stage.*", "mlp_act.*", "nothing.1"]}, "nothing.1: no model of the zoo has a map there"),
        ({"anchors": "demo:clip-p8-b"}, "demo:clip-p8-b is not among the models"),
        ({"units": "features"}, "no stage that is read makes an SAE of it"),
        ({"budget_gb": 0.001}, "budget_gb: the maps of 1 images"),
        ({"chance_shift": 128}, "chance_shift: 128 of 64 images sets each image against itself"),
        ({"k": 900, "sites": ["stage.1", "mlp_act.0"]}, "k: 900 neighbours of 384 units of demo:clip-p8"),
    ],
)
def test_a_spec_that_these_models_cannot_meet_is_refused_with_its_stage(
    lake: Lake, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadSpec, match=words) as error:
        planned(lake, **changes)
    assert str(error.value).startswith("stages.shared")


def test_one_image_is_refused(lake: Lake) -> None:
    spec = pipeline()
    limited = spec.images.model_copy(update={"limit": 1})  # type: ignore[union-attr]
    with pytest.raises(TooFewImages, match="expected at least 2 images"):
        plan_pipeline(spec.model_copy(update={"images": limited}), lake.store)


def test_one_model_shares_units_with_nobody(lake: Lake) -> None:
    with pytest.raises(BadSpec, match="give at least two models"):
        planned(lake, ("demo:clip-p8",))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sites": ["resid_post.1@cls"]}, "resid_post.1@cls is no map; write resid_post.1@patch"),
        ({"sites": ["stage.1:mean"]}, "is no map"),
        ({"sites": ["module:visual.conv1"]}, "a plain module is of one model"),
        ({"grid": 7}, r"grid 7: expected pairwise_max, or rows and columns such as \[7, 7\]"),
        ({"grid": [1, 4]}, "nothing can be interpolated to it"),
        ({"k": 0}, "expected 1 to 1000 neighbours"),
        ({"k": [1, 2, 3]}, "k"),
        ({"anchors": "none", "entries_from": "clusters"}, "anchors: none leaves none; take entries_from: cliques"),
    ],
)
def test_a_spec_that_no_model_could_meet_is_no_spec(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pipeline(**fields)


def test_a_model_that_is_not_inspected_leaves_the_other_pairs_planned(lake: Lake) -> None:
    found = planned(lake, (*ZOO, "demo:siglip-p8"))
    unplanned = [title(cell) for cell in found.cells if not cell.plans]
    assert unplanned == [
        "shared/demo:siglip-p8",
        *(f"shared/{model}+demo:siglip-p8" for model in ZOO),
        "shared",
    ]
    assert len(by_output(found, "pair")) == 6


def test_a_plan_says_what_was_weighed_about_maps(lake: Lake) -> None:
    found = planned(lake, maps="recompute")
    notes = [get_kind("mine_rosetta").estimate(p, found.known).note for p in by_output(found, "units")]
    assert all("maps are computed where they are needed" in note for note in notes)
    kept = planned(lake, maps="cache")
    assert "each node keeps its maps" in get_kind("mine_rosetta").estimate(by_output(kept, "units")[0], kept.known).note
