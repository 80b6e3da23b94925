"""What a stage says of itself to people."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.plans import StageSpec

UNITS = {"site": "resid_post.3@patch", "variant": "miclip in+out", "unit_kind": "neurons", "seed": 1}
FEATURES = {**UNITS, "variant": "auroc", "unit_kind": "features", "seed": None}
ALIGN = {"w_out": 1.0, "w_in": 0.0, "logit_scale": "learned", "lr": 1e-3, "seed": 2, "batch": 64}


@pytest.mark.parametrize(
    ("params", "inputs", "said"),
    [
        ({"site": "embedding"}, {}, "embedding"),
        (UNITS, {}, "resid_post.3@patch miclip in+out neurons seed 1"),
        ({**UNITS, "seed": 0}, {}, "resid_post.3@patch miclip in+out neurons seed 0"),
        (FEATURES, {"sae": "0123456789abcdef0123"}, "resid_post.3@patch auroc features of sae:01234567"),
        (
            {**UNITS, "at": "resid_post.3@all"},
            {},
            "resid_post.3@patch miclip in+out neurons at resid_post.3@all seed 1",
        ),
        ({**UNITS, "at": "resid_post.3@patch", "error": "keep"}, {}, "resid_post.3@patch miclip in+out neurons seed 1"),
        ({**FEATURES, "error": "drop"}, {}, "resid_post.3@patch auroc features error drop"),
        (
            {"between": "neurons and features of sae:01234567"},
            {"a": "1", "b": "2"},
            "neurons and features of sae:01234567",
        ),
        ({"site": "resid_post.3@patch"}, {"sae": "0123456789abcdef0123"}, "resid_post.3@patch of sae:01234567"),
        ({"between": "neurons"}, {"a": "1", "b": "1"}, "neurons with itself"),
        ({"site": "pooled", "align": ALIGN}, {}, "pooled w_out 1 w_in 0 logit_scale learned lr 0.001 seed 2"),
    ],
)
def test_a_stage_says_what_tells_it_from_its_siblings(
    params: dict[str, Any], inputs: dict[str, str], said: str
) -> None:
    stage = StageSpec(kind="describe", method=1, subject="demo:a", output="auroc", params=params, inputs=inputs)
    assert stage.detail == said
