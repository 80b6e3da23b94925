"""A sweep of sparse autoencoders as a person writes it: which SAEs it stands for, and what is refused."""

from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.errors import BadRef
from schemas.job_files import AnySpec, as_pipeline
from schemas.pipeline_spec import PipelineSpec
from schemas.plans import StageSpec
from schemas.refs import SaeRef
from schemas.sae import SaeSettings, default_dead_tokens, default_lr, make_group_sizes
from schemas.sae_specs import TrainSaeSpec

SITE = "resid_post.-2@patch"


def sweep(**fields: object) -> TrainSaeSpec:
    return TrainSaeSpec.model_validate_json(json.dumps({"sites": SITE, "steps": 100, **fields}))


def test_a_sweep_is_every_combination_in_the_order_of_the_fields() -> None:
    saes = sweep(latents=[64, 128], k=[4, 8], seed=[0, 1]).saes()
    assert [(s.latents, s.k, s.seed) for s in saes] == [
        (m, k, seed) for m in (64, 128) for k in (4, 8) for seed in (0, 1)
    ]


def test_fields_that_an_arch_does_not_use_make_no_further_saes() -> None:
    saes = sweep(arch=["topk", "relu"], latents=64, k=[4, 8], l1=[0.1, 0.2]).saes()
    assert [(s.arch, s.k, s.l1) for s in saes] == [
        ("topk", 4, None),
        ("topk", 8, None),
        ("relu", None, 0.1),
        ("relu", None, 0.2),
    ]


def test_formulas_fill_in_what_is_not_given() -> None:
    (sae,) = sweep(latents=1 << 12, k=32, steps=5000).saes()
    assert sae.lr == default_lr(1 << 12) == pytest.approx(4e-4)  # 2e-4 / sqrt(1/4)
    assert (sae.warmup_steps, sae.dead_tokens) == (500, 100_000)
    assert default_dead_tokens(1 << 20, 32) == 200 * 2**20 // 32
    assert default_dead_tokens(1 << 24, 32) == 10_000_000
    assert sweep(steps=50_000).saes()[0].warmup_steps == 1000


def test_matryoshka_levels_sum_to_the_latents() -> None:
    assert make_group_sizes(1000) == (31, 62, 125, 250, 532)
    (mean,) = sweep(arch="matryoshka", latents=1000).saes()
    (total,) = sweep(arch="matryoshka", latents=1000, level_weights="sum").saes()
    assert mean.group_sizes == total.group_sizes == (31, 62, 125, 250, 532)
    assert (mean.level_weights, total.level_weights) == ((0.2,) * 5, (1.0,) * 5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"latents": 16, "k": 17}, "k is 17, but there are only 16 latents"),
        ({"latents": 0}, "greater than or equal to 1"),
        ({"arch": "top-k"}, "Input should be"),
        ({"sites": []}, "no sites"),
        ({"batch_tokens": 3, "data_parallel": 4}, "cannot be shared"),
        ({"holdout": 0}, "greater than 0"),
        (
            {"arch": "matryoshka", "latents": 16, "k": 4},
            "make groups of [0, 1, 2, 4, 9]; expected at least one in each",
        ),
        ({"levels": [0.5, 0.8]}, "found [0.5, 0.8], which sum to 1.3; expected shares above 0 that sum to 1"),
        ({"betas": [0.9, 1]}, "found [0.9, 1.0], expected two numbers from 0 to below 1"),
        ({"levels": [-0.5, 1.5]}, "expected shares above 0"),
        ({"levels": []}, "which sum to 0; expected shares above 0"),
        ({"reads": "acts", "images": {"ref": "folder:/a"}}, "images are those of the extract stage"),
        ({"k": [True]}, "valid integer"),
    ],
)
def test_impossible_sweeps_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        sweep(**fields)
    assert said in str(caught.value)


def test_settings_alone_refuse_what_no_spec_would_make() -> None:
    common = {"latents": 8, "lr": 1e-3, "steps": 1, "dead_tokens": 1}
    with pytest.raises(ValidationError, match="topk needs k"):
        SaeSettings(arch="topk", **common)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="1 level_weights for 2 group_sizes"):
        SaeSettings(arch="matryoshka", k=2, group_sizes=(4, 4), level_weights=(1.0,), **common)  # type: ignore[arg-type]


def load(**stages: object) -> PipelineSpec:
    data = {"kind": "pipeline", "name": "p", "matrix": {"model": ["demo:a", "demo:b"]}, "stages": stages}
    spec = TypeAdapter(AnySpec).validate_json(json.dumps({**data, "images": {"ref": "folder:/a"}}))
    assert isinstance(spec, PipelineSpec)
    return spec


def test_a_stage_is_repeated_for_the_models_of_what_it_reads() -> None:
    acts = {"kind": "extract", "model": ["demo:b", "demo:c"], "sites": SITE, "outputs": "activations"}
    spec = load(acts=acts, sae={"kind": "train_sae", "reads": "acts"}, live={"kind": "train_sae", "sites": SITE})
    assert spec.models_of("sae") == ("demo:b", "demo:c") and spec.models_of("live") == ("demo:a", "demo:b")
    assert not spec.stages["sae"].needs_images(spec.kinds_read("sae"))
    assert spec.stages["live"].needs_images(spec.kinds_read("live"))


def test_a_sweep_alone_in_a_file_is_a_pipeline_of_one_stage() -> None:
    job = {"kind": "train_sae", "name": "mine", "model": "demo:a", "images": {"ref": "folder:/a"}, "sites": SITE}
    alone = as_pipeline(TypeAdapter(AnySpec).validate_json(json.dumps(job)))
    assert alone.name == "mine" and list(alone.stages) == ["train-sae"]
    with pytest.raises(ValidationError, match="reads no stage"):
        TypeAdapter(AnySpec).validate_json(json.dumps({**job, "reads": "acts", "images": None}))


@pytest.mark.parametrize("text", ["sae:0123456789abcdef0123", "sae:01234567", "saelens:/a/b", "sparsify:s3://b/k"])
def test_an_sae_ref_reads_back_as_it_was_written(text: str) -> None:
    assert str(SaeRef.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sae:0123", "8 to 20 hex digits"),
        ("sae:xyzxyzxyz", "8 to 20 hex digits"),
        ("saelens:relative/dir", "absolute path"),
        ("saelens:/a/../b", "format:location"),
        ("gpt:/a", "one of miclip, saelens"),
        ("plain", "sae:<stage>"),
    ],
)
def test_what_is_no_sae_ref_is_refused_with_an_example(text: str, said: str) -> None:
    with pytest.raises(BadRef, match=said):
        SaeRef.parse(text)


def test_a_stage_says_what_tells_its_sae_from_the_others_of_a_sweep() -> None:
    (sae,) = sweep(latents=64, k=4, lr=2e-3).saes()
    params = {"site": "resid_post.3@patch", "sae": sae.model_dump(mode="json")}
    stage = StageSpec(kind="train_sae", method=1, subject="demo:a", output="sae", params=params)
    assert stage.detail == "resid_post.3@patch topk 64 latents k 4 lr 0.002 seed 0"
