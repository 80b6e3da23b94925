"""What the fields of several kinds share: one value in place of a list, refs of CLIPs, sites and templates as they are written."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.align_specs import AlignSpec
from schemas.cells import Classes, OverModels, templates_json
from schemas.evaluate_specs import EvaluateSpec, TraceErrorsSpec
from schemas.extract_specs import ExtractSpec


def align(**fields: Any) -> AlignSpec:
    return AlignSpec.model_validate({"reads": "acts", **fields}, strict=False)


def test_one_value_may_stand_for_a_list_of_one() -> None:
    one = align(sites="resid_post.3@cls", loss="in", logit_scale=20.0, lr=0.1, seed=3)
    many = align(sites=["resid_post.3@cls"], loss=["in"], logit_scale=[20.0], lr=[0.1], seed=[3])
    assert one == many and one.reads == ("acts",) and one.seed == (3,)
    assert ExtractSpec.model_validate({"outputs": "embeddings"}, strict=False).outputs == ("embeddings",)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sites": "resid post"}, r"sites\n  Value error, site 'resid post': expected name"),
        ({"clip": "no model"}, r"clip\n  Value error, model"),
        ({"templates": ["a photo"]}, r"templates\n  Value error, template 'a photo' must contain {} exactly once"),
        ({"templates": []}, "an empty list of templates makes no sentence"),
        ({"seed": True}, "seed"),
    ],
)
def test_what_does_not_parse_is_refused_under_the_name_of_its_field(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        align(**fields)


def test_refs_and_sites_are_kept_as_they_are_written_canonically() -> None:
    assert align(clip="demo:clip-rn", sites="resid_post.3@patch:sample(4, 0)").sites == (
        "resid_post.3@patch:sample(4,0)",
    )
    assert TraceErrorsSpec.model_validate({"reads": "a", "sites": "resid_post.*@cls"}, strict=False).sites
    assert EvaluateSpec.model_validate({"reads": "a", "clip": "demo:clip-rn"}, strict=False).needs_clip


def test_only_stages_that_name_folders_have_some() -> None:
    judged = EvaluateSpec.model_validate({"reads": "a", "sentences": "file:/models/mpnet"}, strict=False)
    assert judged.folders == ("/models/mpnet",) and align().folders == ()


def test_templates_are_written_as_a_name_or_a_list() -> None:
    classes = Classes.model_validate({"names": ["a", "b"], "templates": ["a {}"]}, strict=False)
    assert templates_json(classes.templates) == ["a {}"] and templates_json("plain") == "plain"


def test_a_list_of_models_names_none_twice() -> None:
    with pytest.raises(ValidationError, match="the same model twice: demo:clip-p8"):
        OverModels.model_validate({"model": ["demo:clip-p8", "demo:clip-rn", "demo:clip-p8"]}, strict=False)
