"""What of a spec decides the result, and what combinations are refused."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from schemas.align_specs import AlignSpec
from schemas.base import canonical_json, digest
from schemas.cells import Classes, Images
from schemas.concept_specs import DescribeSpec
from schemas.evaluate_specs import EvaluateSpec, GeometrySpec, TraceErrorsSpec
from schemas.explain_specs import ExplainSpec, MapExplanationsSpec, ScoreExplanationsSpec
from schemas.explorer_specs import ExplorerSpec
from schemas.extract_specs import ExtractSpec
from schemas.intervene_specs import AttentionMapsSpec, InterveneSpec
from schemas.invert_specs import InvertSpec
from schemas.job_files import (
    AnySpec,
    ExtractFile,
    ImportSaeFile,
    OneJob,
    SaeFeaturesFile,
    SelftestFile,
    TrainSaeFile,
    as_pipeline,
)
from schemas.pipeline_spec import PipelineSpec
from schemas.probe_specs import ProbeSpec
from schemas.rosetta_specs import MineRosettaSpec
from schemas.sae_specs import ImportSaeSpec, SaeFeaturesSpec, TrainSaeSpec
from schemas.selftest_specs import SelftestSpec
from schemas.specs import JobSpec

FORWARD = {"kind", "reads", "model", "images", "sites", "round_to", "dtype", "geometry", "on_nonfinite", "on_changed"}
MEASURED = FORWARD | {"block_images", "holdout", "order_seed", "evaluate_images", "classes", "labels_from"}
ROLES: dict[type[BaseModel], dict[str, set[str]]] = {
    ExtractSpec: {
        "result": FORWARD | {"outputs", "classes", "texts", "top_k", "predictions_k"},
        "effort": {"over", "resources", "batch_size", "shard_rows"},
    },
    TrainSaeSpec: {
        "result": MEASURED | {
            "arch", "latents", "k", "l1", "lr", "seed", "steps", "batch_tokens", "buffer_batches", "normalise", "centre",
            "betas", "warmup_steps", "decay_from", "grad_clip", "aux_coefficient", "aux_k", "dead_tokens", "levels",
            "level_weights", "scope", "bandwidth", "initial_threshold", "sparsity_coefficient", "sparsity_warmup_steps",
            "precision", "data_parallel",
        },
        "effort": {"over", "resources", "batch_size", "feeders", "keep_every"},
    },
    ImportSaeSpec: {"result": MEASURED | {"saes"}, "effort": {"over", "resources", "batch_size"}},
    SaeFeaturesSpec: {
        "result": FORWARD | {
            "saes", "tables", "top_k", "rank_by", "concepts_per_feature", "features_per_concept", "max_values", "min_positives",
        },
        "effort": {"over", "resources", "batch_size", "shard_rows"},
    },
    ProbeSpec: {
        "result": {"kind", "reads", "model", "sites", "pool", "labels_from", "classes", "l2", "folds", "predictions_k", "seed"},
        "effort": {"over", "resources"},
    },
    AlignSpec: {
        "result": {
            "kind", "reads", "model", "clip", "sites", "pool", "templates", "loss", "logit_scale", "lr", "seed", "bias",
            "standardise", "multi_positive", "betas", "batch", "epochs", "drop_last", "patience", "holdout",
        },
        "effort": {"over", "resources", "keep_every"},
    },
    DescribeSpec: {
        "result": FORWARD | {
            "clip", "methods", "units", "concepts", "templates", "tau", "pool", "unit_mode", "similarity", "labels_from",
            "min_positives", "segmenter", "on_share", "captioner", "prompt", "patches", "context", "seed",
        },
        "effort": {"over", "resources", "batch_size", "shard_rows"},
    },
    InterveneSpec: {
        "result": FORWARD | {"changes", "error", "positions", "tau", "classes", "labels_from", "off_class_seed"},
        "effort": {"over", "resources", "batch_size", "shard_rows"},
    },
    AttentionMapsSpec: {
        "result": FORWARD | {"concepts", "labels_from", "images_per_concept", "tau", "activation"},
        "effort": {"over", "resources", "batch_size", "shard_rows"},
    },
    TraceErrorsSpec: {
        "result": {"kind", "reads", "model", "sites", "labels_from"},
        "effort": {"over", "resources", "shard_rows"},
    },
    GeometrySpec: {
        "result": {"kind", "reads", "model", "groups", "tau", "neighbours", "permutations", "perplexity", "seed"},
        "effort": {"over", "resources"},
    },
    EvaluateSpec: {
        "result": {"kind", "reads", "model", "clip", "truth", "min_truth", "sentences", "seed"},
        "effort": {"over", "resources"},
    },
    MineRosettaSpec: {
        "result": FORWARD | {
            "units", "grid", "k", "rank_by", "min_r", "margin", "precision", "chance", "chance_shift", "rare", "min_active_images",
            "min_active_positions", "anchors", "tuples", "min_clique", "most", "entries_from", "entries", "exemplars",
        },
        "effort": {"over", "resources", "batch_size", "shard_rows", "maps", "cache_gb", "budget_gb"},
    },
    InvertSpec: {
        "result": {
            "kind", "reads", "generator", "images", "members", "units", "pairs", "k", "similarity", "reconstruction", "activation",
            "regulariser", "norm", "towards", "space", "starts", "steps", "lr", "betas", "ramp", "tolerance", "seed", "edit", "amount",
            "chosen",
        },
        "effort": {"over", "resources", "batch_size", "samples_at_once", "shard_rows"},
    },
    ExplainSpec: {
        "result": {
            "kind", "reads", "model", "vlm", "methods", "masking", "direction", "alpha", "alpha_grid", "alpha_unit", "validation",
            "steered", "informed", "operation", "blank", "k", "features", "most", "steering_prompt", "masks_prompt", "heatmaps_prompt",
            "max_new_tokens", "decoding", "temperature", "top_p", "top_k", "sequences", "seed", "dtype", "segmenter", "masks_scored",
        },
        "effort": {"over", "resources", "batch_features", "shard_features"},
    },
    ScoreExplanationsSpec: {
        "result": {
            "kind", "reads", "model", "clip", "metrics", "top", "on_shared", "scored", "segmenter", "masks_scored", "clip_view", "maker",
            "maker_prefix", "maker_images", "maker_steps", "maker_guidance", "maker_size", "activation", "least_auroc",
            "naming_level", "min_iou", "min_synthetic", "min_synthetic_percentile", "sentences", "agreement", "labels", "seed", "dtype",
        },
        "effort": {"over", "resources", "batch_size", "shard_features"},
    },
    MapExplanationsSpec: {
        "result": {
            "kind", "reads", "model", "clip", "texts", "sentences", "clusters", "restarts", "layout", "neighbours", "min_dist",
            "topics", "seed", "dtype",
        },
        "effort": {"over", "resources"},
    },
    ExplorerSpec: {
        "result": {"kind", "reads", "model", "top", "names", "partners"},
        "effort": {"over", "resources", "shard_units"},
    },
    SelftestSpec: {
        "result": {"kind", "reads", "subject", "rows", "seed", "nan_rows", "variants"},
        "effort": {
            "over", "resources", "shard_rows", "sleep_ms", "poison_shards", "crash_once_dir", "error_shards", "oom_above", "batch_rows",
            "gang",
        },
    },
    Images: {"result": {"ref", "labels", "orientation", "limit"}, "effort": set()},
    Classes: {"result": {"names", "templates"}, "effort": set()},
}  # fmt: skip


@pytest.mark.parametrize("spec", ROLES, ids=lambda spec: spec.__name__)
def test_every_field_is_declared_result_or_effort_as_listed_here(spec: type[BaseModel]) -> None:
    roles = spec.roles()  # type: ignore[attr-defined]
    assert {n for n, r in roles.items() if r == "result"} == ROLES[spec]["result"]
    assert {n for n, r in roles.items() if r == "effort"} == ROLES[spec]["effort"]
    assert set(roles) == set(spec.model_fields)


def test_every_job_kind_is_listed_here() -> None:
    assert set(get_args(JobSpec)) <= set(ROLES)


@pytest.mark.parametrize("standing", [ExtractFile, TrainSaeFile, ImportSaeFile, SaeFeaturesFile, SelftestFile])
def test_a_job_alone_in_a_file_adds_only_its_name_and_store(standing: type[BaseModel]) -> None:
    plain = standing.__mro__[1]
    assert set(standing.model_fields) - set(plain.model_fields) == set(OneJob.model_fields) == {"name", "store"}  # type: ignore[attr-defined]


def load(text: str) -> object:
    return TypeAdapter(AnySpec).validate_json(text)


def extract(**fields: object) -> str:
    return json.dumps({"kind": "extract", "model": "demo:x", "images": {"ref": "folder:/a"}, **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"outputs": ["activations"]}, "outputs activations need sites"),
        ({"outputs": ["embeddings"], "sites": ["resid_post.1"]}, "sites are given but no output uses them"),
        ({"outputs": ["text_embeddings"]}, "needs texts or classes"),
        ({"outputs": ["embeddings"], "model": []}, "an empty list of models"),
        ({"outputs": ["embeddings"], "model": "clip"}, "expected source:name"),
        ({"outputs": ["embeddings"], "images": None}, "no images; give images"),
        ({"outputs": ["embeddings"], "model": None}, "no model; give model"),
        ({"outputs": ["embeddings"], "images": {"ref": "folder:/a", "labels": "folders"}}, "expected none, from_folders or file:PATH"),
        ({"outputs": ["predictions"], "classes": {"names": ["a", "b"], "templates": ["no place"]}}, "must contain {} exactly once"),
        ({"outputs": ["predictions"], "classes": {"names": ["a"]}}, "at least 2 items"),
        ({"outputs": ["embeddings"], "top_k": 0}, "greater than or equal to 1"),
        ({"outputs": ["embeddings"], "batch_size": "8"}, "valid integer"),
        ({"outputs": ["embeddings"], "batch_size": True}, "valid integer"),
    ],
)  # fmt: skip
def test_impossible_combinations_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        load(extract(**fields))
    assert said in str(caught.value)


def pipeline(**fields: object) -> str:
    stage = {"kind": "selftest"}
    return json.dumps({"kind": "pipeline", "name": "p", "stages": {"a": stage}, **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stages": {}}, "at least 1 item"),
        ({"stages": {"a": {"kind": "selftest", "reads": "b"}}}, "no stage 'b'; there are a"),
        (
            {"stages": {"a": {"kind": "selftest", "reads": ["b"]}, "b": {"kind": "selftest", "reads": ["a"]}}},
            "stages a, b read each other in a circle",
        ),
        ({"stages": {"a": {"kind": "extract", "outputs": ["embeddings"]}}}, "stages.a: no model"),
        ({"matrix": {"model": []}}, "matrix.model: an empty list leaves nothing to do"),
        ({"matrix": {"model": ["demo:x", "demo:x"]}}, "the same model twice"),
        (
            {"stages": {"a": {"kind": "selftest"}, "b": {"kind": "train_sae", "reads": "a"}}},
            "train_sae cannot read selftest",
        ),
        ({"stages": {"b": {"kind": "train_sae", "model": "demo:x", "sites": "resid_post.1"}}}, "stages.b: no images"),
        (
            {"stages": {"a": {"kind": "selftest"}, "b": {"kind": "describe", "model": "demo:x", "reads": "a"}}},
            "describe cannot read selftest; it reads align, extract, import_sae, probe, train_sae",
        ),
        (
            {"stages": {"b": {"kind": "describe", "model": "demo:x", "reads": "b2", "concepts": ["a", "a "]}}},
            "a is there twice",
        ),
        (
            {"stages": {"b": {"kind": "describe", "model": "demo:x", "reads": "b2", "concepts": "words"}}},
            "expected classes, world",
        ),
        ({"stages": {"b": {"kind": "describe", "model": "demo:x"}}}, "no units; give reads"),
        ({"stages": {"b": {"kind": "probe", "reads": "a", "classes": ["x", "x "]}}}, "classes x are there twice"),
        ({"stages": {"b": {"kind": "probe", "reads": "a", "classes": ["x", " "]}}}, "a class without a name"),
        ({"stages": {"b": {"kind": "probe", "reads": "a", "classes": ["x"]}}}, "at least 2"),
        ({"stages": {"b": {"kind": "probe", "model": "demo:x", "classes": ["x", "y"]}}}, "no activations; give reads"),
        ({"stages": {"b": {"kind": "intervene", "model": "demo:x"}}}, "no units to change; give reads"),
        (
            {
                "stages": {
                    "b": {"kind": "intervene", "reads": "a", "changes": [{"beta": 2.0}, {"op": "scale", "beta": 2.0}]}
                }
            },
            "the same change twice",
        ),
        ({"stages": {"b": {"kind": "geometry", "reads": "a", "groups": {"one": ["x"]}}}}, "expected at least two"),
        ({"stages": {"b": {"kind": "evaluate", "reads": "a", "sentences": "mpnet"}}}, "expected file:/folder"),
        ({"name": "../up"}, "pattern"),
        ({"stages": {"A/b": {"kind": "selftest"}}}, "pattern"),
    ],
)
def test_impossible_pipelines_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        load(pipeline(**fields))
    assert said in str(caught.value)


def test_waves_follow_reads() -> None:
    one = {"kind": "selftest"}
    stages = {"c": {**one, "reads": ["a", "b"]}, "a": one, "b": {**one, "reads": "a"}, "d": one}
    spec = load(pipeline(stages=stages))
    assert isinstance(spec, PipelineSpec)
    assert spec.waves() == [["a", "d"], ["b"], ["c"]]


def test_a_value_that_is_written_down_reads_back_equal() -> None:
    spec = load(extract(outputs=["embeddings"], resources={"gpus": 0.5}))
    again = load(spec.model_dump_json())  # type: ignore[attr-defined]
    assert again == spec
    assert as_pipeline(again).stages["extract"].resources.gpus == 0.5  # type: ignore[arg-type]


def test_values_are_frozen_and_unknown_fields_are_refused() -> None:
    spec = SelftestSpec()
    with pytest.raises(ValidationError):
        spec.rows = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        load('{"kind": "selftest", "rosw": 3}')


def test_canonical_json_does_not_depend_on_the_order_of_fields() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    assert len(digest({})) == 20
    with pytest.raises(ValueError):
        canonical_json(float("nan"))
