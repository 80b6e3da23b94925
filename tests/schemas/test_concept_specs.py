"""Specs that name units: what is inherited and what is refused when they are read."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.concept_specs import DescribeSpec
from schemas.pipeline_spec import PipelineSpec


def make(**fields: Any) -> DescribeSpec:
    return DescribeSpec.model_validate({"reads": ["acts"], **fields}, strict=False)


def pipeline(**describe: Any) -> PipelineSpec:
    acts = {"kind": "extract", "sites": ["resid_post.3@patch"], "outputs": ["activations", "predictions"]}
    acts |= {"classes": {"names": ["a", "b"]}}
    data = {
        "kind": "pipeline", "name": "t", "images": {"ref": "folder:/x"}, "matrix": {"model": ["demo:clip-p8"]},
        "stages": {"acts": acts, "names": {"kind": "describe", "reads": "acts", **describe}},
    }  # fmt: skip
    return PipelineSpec.model_validate(data, strict=False)


def test_methods_that_compare_in_the_space_of_a_clip_need_one_and_no_others_do() -> None:
    assert pipeline(methods=["act_values", "auroc", "netdissect"]).clip_of("names") is None
    for method in ("miclip", "clip_dissect", "v_interp"):
        with pytest.raises(ValueError, match=r"stages\.names: no CLIP whose space concepts are in; give clip:"):
            pipeline(methods=[method])
        assert pipeline(methods=[method], clip="demo:clip-rn").clip_of("names") == "demo:clip-rn"


def test_one_value_is_a_list_of_one_and_names_lose_the_space_around_them() -> None:
    spec = make(methods="auroc", units="features", labels_from="shape", concepts=[" red ", "ring"])
    assert (spec.methods, spec.units, spec.labels_from) == (("auroc",), ("features",), ("shape",))
    assert spec.concepts == ("red", "ring")


def test_models_beside_the_checkpoints_are_known_only_where_a_method_asks_for_them() -> None:
    where = {"segmenter": "file:/models/clipseg", "captioner": "s3://models/blip"}
    assert make(**where).folders == ()
    assert make(**where, methods=["netdissect"]).folders == ("/models/clipseg",)
    assert make(**where, methods=["v_interp", "netdissect"]).folders == ("/models/clipseg", "s3://models/blip")
    assert make(methods=["v_interp", "netdissect"]).folders == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reads": []}, "no units; give reads: an align stage for method miclip, an extract stage for the others"),
        ({"images": {"ref": "folder:/x"}}, "images are those of the stages that it reads"),
        ({"unit_mode": "decoded"}, "take direction or decoded_mean"),
        ({"concepts": "wordz:3"}, "expected classes, world, world:shape,colour, words:N with N of at least 1, file:/"),
        ({"concepts": ["red", "ring", "red "]}, "red is there twice"),
        ({"concepts": ["red", " "]}, "found 2 names of concepts, some of them empty"),
        ({"templates": ["a photo"]}, "must contain {} exactly once"),
        ({"segmenter": "captions"}, "segmenter is truth or a folder"),
        ({"captioner": "blip"}, "expected truth .* or s3://..., found 'blip'"),
        ({"tau": 0}, "greater than or equal to 1"),
        ({"methods": []}, "at least 1 item"),
        ({"similarity": ["l2"]}, "'cos', 'cos_cubed'"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(**fields)
