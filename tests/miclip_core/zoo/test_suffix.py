"""Passes that start late give what whole passes give, bit for bit."""

from __future__ import annotations

import pytest
import torch

from miclip_core.zoo.edits import Edit
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.suffix import Suffix, find_entrance, latest_name
from schemas.refs import ModelRef, Site

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return load_model(ModelRef.parse("demo:clip-p8"))


@pytest.mark.parametrize(
    ("site", "entrance"),
    [
        ("resid_post.3@patch", "resid_mid.3"),
        ("mlp_act.2@patch", "resid_mid.2"),
        ("attn_out.1@cls", "resid_pre.1"),
        ("resid_pre.1@cls", "resid_pre.1"),
        ("embedding", None),
    ],
)
def test_a_pass_starts_at_the_last_residual_before_the_site(
    model: VisionModel, site: str, entrance: str | None
) -> None:
    assert find_entrance(model, site) == entrance


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("clip-p8", "resid_post.3"), ("clip-p8", "mlp_act.2"), ("clip-p8", "attn_out.1"), ("clip-p8", "pooled"),
        ("vit-dense", "resid_pre.2"), ("clip-rn", "stage.3"), ("resnet-sup", "conv.3.0.act1"),
    ],
)  # fmt: skip
def test_an_edited_end_of_a_pass_equals_the_whole_pass_with_the_edit(name: str, site: str) -> None:
    model = load_model(ModelRef.parse(f"demo:{name}"))
    suffix = Suffix(model, site, ["embedding", "logits"])
    assert suffix.targets == (["embedding", "logits"] if name == "resnet-sup" else ["embedding"])
    clean = suffix.begin(IMAGES)
    for factor in (1, 3.0):
        edits = [Edit(Site(path=site), "scale", factor)]
        whole, end = model.run(IMAGES, suffix.targets, edits), suffix.edited(edits)
        assert all(torch.equal(end[target], whole[target]) for target in suffix.targets)
        assert torch.equal(end["embedding"], clean["embedding"]) == (factor == 1)


def test_the_output_of_a_block_is_the_input_of_the_next(model: VisionModel) -> None:
    site = latest_name(model, Site.parse("resid_post.2@cls"))
    assert str(site) == "resid_pre.3@cls"
    out = model.run(IMAGES, ["resid_post.2@cls", site])
    assert torch.equal(out["resid_post.2@cls"], out["resid_pre.3@cls"])
    assert str(latest_name(model, Site.parse("resid_post.4@cls"))) == "resid_post.4@cls"  # the last block
    assert str(latest_name(model, Site.parse("mlp_out.2"))) == "mlp_out.2"
