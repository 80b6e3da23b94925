"""A matrix of models and settings: what each cell is told, which cells are left out, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.cells import CellPlans, spread
from cluster.planned import title
from schemas.matrix import NotTaken, place_text, with_fields
from schemas.pipeline_spec import PipelineSpec
from schemas.sae_specs import TrainSaeSpec

A, B, C = "demo:clip-p8", "demo:siglip-p8", "demo:clip-rn"
STAGES: dict[str, Any] = {
    "acts": {"kind": "extract", "sites": ["resid_post.-2@patch"], "outputs": ["activations"]},
    "sae": {"kind": "train_sae", "reads": "acts", "over": ["latents", "k"], "steps": 10},
    "features": {"kind": "sae_features", "reads": ["sae", "acts"], "over": "latents"},
}


def pipeline(stages: dict[str, Any] = STAGES, **fields: Any) -> PipelineSpec:
    matrix = {"model": [A, B], "latents": [64, 128], "k": [2, 4, 8], **fields.pop("matrix", {})}
    data = {"name": "x", "images": {"ref": "folder:/i"}, "matrix": matrix, "stages": stages, **fields}
    return PipelineSpec.model_validate_json(json.dumps(data))


def titles(spec: PipelineSpec, stage: str) -> list[str]:
    return [title(CellPlans(cell)) for cell in spread(spec, stage)]


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as raised:
        pipeline(**fields)
    return str(raised.value.errors()[0]["ctx"]["error"])


# -- axes


def test_a_stage_is_repeated_over_its_axes_and_each_cell_has_its_values():
    """2 models x 2 widths x 3 sparsities; the axes stand in the fields of their names."""
    cells = list(spread(pipeline(), "sae"))
    assert [(c.model, c.spec.latents, c.spec.k) for c in cells] == [
        (model, (latents,), (k,)) for latents in (64, 128) for k in (2, 4, 8) for model in (A, B)
    ]
    assert cells[0].at == {"latents": 64, "k": 2} and cells[0].spec.steps == 10


def test_cells_are_called_by_stage_model_and_place():
    assert titles(pipeline(), "features") == [f"features/{m}/latents={n}" for n in (64, 128) for m in (A, B)]
    assert titles(pipeline(), "acts") == [f"acts/{A}", f"acts/{B}"]
    assert place_text({"sites": ("a", "b"), "bias": True}) == "sites=a+b/bias=True"


def test_a_cell_of_a_sweep_is_what_the_same_setting_written_out_would_be():
    cell = next(spread(pipeline(), "sae"))
    plain = TrainSaeSpec.model_validate_json(json.dumps({**STAGES["sae"], "over": [], "latents": 64, "k": 2}))
    assert cell.spec.model_dump(exclude={"over"}) == plain.model_dump(exclude={"over"})


def test_a_stage_without_axes_or_settings_of_its_cells_is_handed_on_as_it_is_written():
    spec = pipeline()
    assert all(cell.spec is spec.stages["acts"] and cell.at == {} for cell in spread(spec, "acts"))


def test_an_axis_of_sites_may_hold_lists():
    stages = {"acts": {**STAGES["acts"], "over": "sites", "sites": "mlp_act.0@patch"}}  # what it gives is one of them
    matrix = {"model": [A], "sites": [["resid_post.0@patch", "resid_post.1@patch"], "mlp_act.0@patch"]}
    data = {"name": "x", "images": {"ref": "folder:/i"}, "matrix": matrix, "stages": stages}
    cells = list(spread(PipelineSpec.model_validate_json(json.dumps(data)), "acts"))
    assert [cell.spec.sites for cell in cells] == [("resid_post.0@patch", "resid_post.1@patch"), ("mlp_act.0@patch",)]


def test_a_zoo_is_compared_in_each_place_of_its_own():
    stages = {"shared": {"kind": "mine_rosetta", "sites": ["mlp_act.0@map"], "over": "k"}}
    data = {"name": "x", "images": {"ref": "folder:/i"}, "matrix": {"model": [A, B], "k": [3, 5]}, "stages": stages}
    cells = list(spread(PipelineSpec.model_validate_json(json.dumps(data)), "shared"))
    assert [(c.at["k"], c.models) for c in cells] == [(k, m) for k in (3, 5) for m in ((A,), (B,), (A, B), (A, B))]


# -- cells that are left out, and cells with settings of their own


def test_what_is_excluded_is_no_cell_and_what_only_reads_a_model_that_is_left_out_is_none_either():
    spec = pipeline(exclude=[{"stage": "acts", "model": B}, {"stage": "sae", "at": {"latents": 128, "k": [4, 8]}}])
    assert titles(spec, "acts") == [f"acts/{A}"]
    assert titles(spec, "sae") == [f"sae/{A}/latents={n}/k={k}" for n, k in ((64, 2), (64, 4), (64, 8), (128, 2))]
    assert titles(spec, "features") == [f"features/{A}/latents={n}" for n in (64, 128)]


def test_a_model_that_is_excluded_everywhere_is_not_in_a_zoo():
    stages = {"shared": {"kind": "mine_rosetta", "sites": ["mlp_act.0@map"]}}
    data = {"name": "x", "images": {"ref": "folder:/i"}, "matrix": {"model": [A, B, C]}, "stages": stages}
    spec = PipelineSpec.model_validate_json(json.dumps({**data, "exclude": [{"model": B}]}))
    assert [cell.models for cell in spread(spec, "shared")] == [(A,), (C,), (A, C), (A, C)]


def test_later_overrides_win_and_other_cells_keep_what_the_stage_says():
    spec = pipeline(
        overrides=[
            {"stage": "sae", "model": B, "set": {"steps": 20, "lr": 0.1}},
            {"stage": "sae", "model": B, "at": {"k": 8}, "set": {"steps": 30}},
        ]
    )
    found = {(c.model, c.at["latents"], c.at["k"]): (c.spec.steps, c.spec.lr) for c in spread(spec, "sae")}
    assert found[A, 64, 8] == (10, ()) and found[B, 64, 2] == (20, (0.1,)) and found[B, 128, 8] == (30, (0.1,))


def test_what_one_cell_is_given_holds_for_its_resources_and_images_too():
    spec = pipeline(
        overrides=[{"stage": "acts", "model": B, "set": {"resources": {"gpus": 1.0}, "images": {"ref": "folder:/b"}}}]
    )
    a, b = spread(spec, "acts")
    assert (a.resources.gpus, a.images.ref) == (0.0, "folder:/i") and (b.resources.gpus, b.images.ref) == (
        1.0,
        "folder:/b",
    )


# -- what is refused


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"matrix": {"latents": [64, 0]}}, "matrix.latents.1: stages.sae: latents.0: "),
        ({"matrix": {"latents": ["wide"]}}, "matrix.latents.0: stages.sae: latents"),
        ({"matrix": {"latents": [64, 64]}}, "matrix.latents: the same latents twice"),
        ({"matrix": {"k": []}}, "matrix.k: an empty list leaves nothing to do"),
        ({"matrix": {"lr": [0.1]}}, "matrix.lr: no stage is repeated over it; give over: lr to one"),
        ({"stages": {**STAGES, "acts": {**STAGES["acts"], "over": "width"}}}, "stages.acts.over: no axis 'width'; there are"),
        ({"stages": {**STAGES, "acts": {**STAGES["acts"], "over": "k"}}}, "stages.acts.over: k is no setting of extract"),
        (
            {"stages": {**STAGES, "acts": {**STAGES["acts"], "over": "batch_size"}}, "matrix": {"batch_size": [8, 16]}},
            "stages.acts.over: batch_size changes no result",
        ),
        ({"stages": {**STAGES, "acts": {**STAGES["acts"], "over": "model"}}}, "stages.acts.over: stages over models are"),
        ({"stages": {**STAGES, "sae": {**STAGES["sae"], "latents": 32}}}, "stages.sae.latents: found [32], but the stage is over latents, whose values are 64 or 128; leave it out here"),
        ({"exclude": [{"stage": "sea"}]}, "exclude.0.stage: no stage 'sea'; there are acts, sae, features; did you mean 'sae'?"),
        ({"exclude": [{"stage": "sae", "at": {"k": 3}}]}, "exclude.0.at.k: found 3, expected 2, 4 or 8"),
        ({"exclude": [{"stage": "sae", "at": {"k": [2, 3]}}]}, "exclude.0.at.k: found 3, expected 2, 4 or 8"),
        ({"exclude": [{"stage": "sae", "at": {"latent": 64}}]}, "exclude.0.at.latent: no axis 'latent'; there are latents, k; did you mean 'latents'?"),
        ({"exclude": [{"stage": "features", "at": {"k": 2}}]}, "exclude.0.at.k: no cell of stages.features has a place on it; give over: k to one"),
        ({"exclude": [{"stage": "sae", "at": {"model": A}}]}, "exclude.0.at.model: models are named beside it; write exclude.0.model"),
        ({"exclude": [{"model": "demo:clip-p9"}]}, f"exclude.0.model: found \"demo:clip-p9\", expected {A} or {B}: the models of this pipeline; did you mean '{A}'?"),
        ({"exclude": [{"stage": "sae", "model": [A, "demo:x"]}]}, f"exclude.0.model: found \"demo:x\", expected {A} or {B}: the models of stages.sae"),
        ({"exclude": [{}]}, "this is of every cell"),
        ({"overrides": [{"stage": "sae", "set": {"stesp": 3}}]}, "overrides.0.set: stages.sae: stesp: Extra"),
        ({"overrides": [{"stage": "sae", "set": {"steps": -3}}]}, "overrides.0.set: stages.sae: steps: "),
        ({"overrides": [{"model": A, "set": {"reads": "x"}}]}, "reads is what a stage is"),
        ({"overrides": [{"stage": "sae", "set": {"k": 3}}]}, "overrides.0.set.k: stages.sae is over k, whose value names the cell"),
        ({"exclude": [{"stage": "features"}]}, "exclude: nothing is left of stages.features"),
        ({"exclude": [{"stage": "acts"}]}, "exclude: nothing is left of stages.acts"),
        ({"stages": {**STAGES, "sae": {**STAGES["sae"], "over": ["k", "k"]}}}, "stages.sae.over: the same axis twice: k, k"),
    ],
)  # fmt: skip
def test_what_no_cell_can_be_is_refused_at_its_place(fields: dict[str, Any], said: str):
    assert said in refusal(**fields)


def test_what_is_asked_of_one_cell_is_there_in_one_cell():
    """The models of one stage and the axis of another are both there, and no cell has both."""
    other = {"kind": "extract", "outputs": ["embeddings"], "model": C}
    said = refusal(stages={**STAGES, "other": other}, exclude=[{"model": C, "at": {"k": 2}}])
    assert said.startswith("exclude.0: no cell is all of this")


def test_a_zoo_is_not_told_to_treat_one_of_its_models_in_another_way():
    stages = {**STAGES, "shared": {"kind": "mine_rosetta", "sites": ["mlp_act.0@map"]}}
    said = refusal(stages=stages, overrides=[{"stage": "shared", "model": A, "set": {"margin": 2}}])
    assert said.startswith("overrides.0.model: stages.shared compares all its models in one way")


def test_a_setting_is_checked_with_the_others_of_its_stage():
    stage = TrainSaeSpec.model_validate_json(json.dumps({"reads": ["acts"], "latents": 64}))
    assert with_fields(stage, {"latents": 32}).latents == (32,) and stage.latents == (64,)
    with pytest.raises(NotTaken, match=r"^seeds: "):
        with_fields(stage, {"seeds": 3})
