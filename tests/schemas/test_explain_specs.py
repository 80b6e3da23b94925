"""What specs of explanations refuse, and that the refusal names what to change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import TypeAdapter

from schemas.explain_specs import ExplainSpec, ScoreExplanationsSpec
from schemas.pipeline_spec import PipelineSpec

SCORES = {"kind": "score_explanations", "reads": ["texts", "others"]}
CLIP = {"clip": "demo:clip-rn"}


def explain(**fields: Any) -> ExplainSpec:
    return TypeAdapter(ExplainSpec).validate_python({"reads": "shown", **fields}, strict=False)


def pipeline(stage: dict[str, Any], **fields: Any) -> PipelineSpec:
    """A stage beside one of texts and two of features."""
    stages = {
        "sae": {"kind": "train_sae", "sites": ["resid_post.0@patch"], "latents": 8, "k": 2},
        "shown": {"kind": "sae_features", "reads": "sae"},
        "others": {"kind": "sae_features", "reads": "sae", "images": {"ref": "folder:/b"}},
        "texts": {"kind": "explain", "reads": "shown"},
        "judge": stage,
    }
    whole = {"kind": "pipeline", "name": "p", "images": {"ref": "folder:/a"}, "matrix": {"model": ["demo:llava-p8"]}}
    return PipelineSpec.model_validate({**whole, "stages": stages, **fields}, strict=False)


@pytest.mark.parametrize("field", [{"temperature": 0.5}, {"top_p": 0.95}, {"top_k": 3}])
def test_settings_of_sampling_are_refused_where_nothing_is_drawn(field: dict[str, Any]) -> None:
    (name,) = field
    with pytest.raises(
        ValueError, match=f"{name}: greedy decoding draws nothing; leave it out, or take decoding: sample"
    ):
        explain(**field)
    assert explain(**field, decoding="sample").decoding == "sample" and explain().decoding == "greedy"


@pytest.mark.parametrize("cosine", [2.0, -1.1, float("nan")])
def test_texts_agree_from_a_cosine_on(cosine: float) -> None:
    with pytest.raises(ValueError, match="agreement"):
        TypeAdapter(ScoreExplanationsSpec).validate_python({**SCORES, "agreement": [0.5, cosine]}, strict=False)
    assert pipeline({**SCORES, "agreement": [-1, 1]}, **CLIP)


@pytest.mark.parametrize(
    ("stage", "asks"),
    [
        ({}, "metric clip and sentences: clip"),
        ({"metrics": ["iou"]}, "sentences: clip"),
        ({"sentences": "file:/mpnet"}, "metric clip"),
    ],
)
def test_who_asks_for_a_clip_is_named_and_what_does_without(stage: dict[str, Any], asks: str) -> None:
    said = (
        f"stages.judge: no CLIP for {asks}; metrics without clip and sentences: file:/folder of sentence-transformers"
    )
    with pytest.raises(ValueError, match=said):
        pipeline({**SCORES, **stage})
    assert pipeline({**SCORES, "metrics": ["iou"], "sentences": "file:/mpnet"}).clip_of("judge") is None


def test_a_map_without_a_clip_says_that_a_folder_does() -> None:
    stage = {"kind": "map_explanations", "reads": "texts", "texts": "all"}
    with pytest.raises(ValueError, match=r"stages\.judge: no CLIP for sentences: clip; sentences: file:/folder"):
        pipeline(stage)
    assert pipeline({**stage, "sentences": "file:/mpnet"})


@pytest.mark.parametrize(
    ("reads", "lacked"),
    [
        ([], "no explain stage, whose texts are scored"),
        (["shown", "others"], "no explain stage, whose texts are scored"),
        (["texts"], "no sae_features stage, on whose images texts are scored"),
    ],
)
def test_which_of_texts_and_features_is_missing_is_said(reads: Sequence[str], lacked: str) -> None:
    with pytest.raises(ValueError, match=rf"stages\.judge\.reads: {lacked}; read one"):
        pipeline({**SCORES, "reads": reads}, **CLIP)
