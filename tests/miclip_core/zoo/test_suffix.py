"""Passes that start late give what whole passes give, bit for bit, and compute nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from miclip_core.zoo.edits import Edit
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.select import whole_site
from miclip_core.zoo.start import CachedBlock
from miclip_core.zoo.suffix import Suffix, find_entrance, latest_name
from schemas.errors import UnknownSite
from schemas.refs import ModelRef, Site

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
MODULES = {
    "clip-p8": ["visual.transformer.resblocks.2.mlp.c_fc", "visual.transformer", "visual.conv1", "visual.ln_post"],
    "clip-rn": ["visual.layer3.0.bn2", "visual.layer2", "visual.bn1", "visual.attnpool"],
    "resnet-sup": ["resnet.encoder.stages.2", "resnet.encoder.stages.1.layers.0"],
    "vit-dense": [],
}


@cache
def get_model(name: str) -> VisionModel:
    return load_model(ModelRef.parse(f"demo:{name}"), modules=[f"module:{path}" for path in MODULES[name]])


@pytest.mark.parametrize(
    ("name", "site", "entrance"),
    [
        ("clip-p8", "resid_post.3@patch", "resid_mid.3"), ("clip-p8", "mlp_act.2@patch", "resid_mid.2"),
        ("clip-p8", "attn_out.1@cls", "resid_pre.1"), ("clip-p8", "resid_pre.1@cls", "resid_pre.1"),
        ("clip-p8", "resid_mid.1", "resid_pre.1"),  # an edit of a sum is made to what is added
        ("clip-p8", "pooled", "resid_mid.4"), ("clip-p8", "embed", None),
        ("clip-p8", "module:visual.transformer.resblocks.2.mlp.c_fc", "resid_pre.2"),
        ("clip-p8", "module:visual.transformer", "resid_pre.4"), ("clip-p8", "module:visual.ln_post", None),
        ("clip-p8", "no_such_site", None),
        ("clip-rn", "stem", "stem"), ("clip-rn", "conv.1.0.act1", "stem"), ("clip-rn", "conv.1.0.out", "conv.1.0.out"),
        ("clip-rn", "conv.2.0.act2", "conv.1.0.out"), ("clip-rn", "stage.2", "conv.2.0.out"),
        ("clip-rn", "pool_out", "conv.4.0.out"), ("clip-rn", "module:visual.layer3.0.bn2", "conv.2.0.out"),
        ("clip-rn", "module:visual.bn1", None), ("resnet-sup", "stage.1", "conv.1.0.out"),
        ("resnet-sup", "module:resnet.encoder.stages.2", "conv.2.0.out"), ("resnet-sup", "logits", "conv.4.0.out"),
    ],
)  # fmt: skip
def test_a_pass_starts_at_the_last_entrance_before_the_site(name: str, site: str, entrance: str | None) -> None:
    assert find_entrance(get_model(name), site) == entrance


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("clip-p8", "resid_post.3"), ("clip-p8", "mlp_act.2"), ("clip-p8", "attn_out.1"), ("clip-p8", "pooled"),
        ("clip-p8", "resid_mid.2"), ("clip-p8", "z.2"), ("clip-p8", "embed"), ("vit-dense", "resid_pre.2"),
        ("clip-rn", "stem"), ("clip-rn", "stage.3"), ("clip-rn", "conv.2.0.out"), ("clip-rn", "pool_in"),
        ("resnet-sup", "conv.3.0.act1"), ("resnet-sup", "pooled"),
        *[(name, f"module:{path}") for name, paths in MODULES.items() for path in paths],
    ],
)  # fmt: skip
def test_an_edited_end_of_a_pass_equals_the_whole_pass_with_the_edit(name: str, site: str) -> None:
    model = get_model(name)
    suffix = Suffix(model, site, ["embedding", "logits"])
    assert suffix.targets == (["embedding", "logits"] if name == "resnet-sup" else ["embedding"])
    (tap,) = model.sites([whole_site(model.facts.site(site))])
    clean = suffix.begin(IMAGES, [tap])
    for factor in (1, 3.0):
        edits = [Edit(Site(path=site), "scale", factor)]
        whole, end = model.run(IMAGES, suffix.targets, edits), suffix.edited(edits)
        assert all(torch.equal(end[target], whole[target]) for target in suffix.targets)
    assert not torch.equal(end["embedding"], clean["embedding"])
    value = clean[str(tap)] + 0.5
    whole = model.run(IMAGES, suffix.targets, [Edit(Site(path=site), "fn", lambda _: value)])
    assert all(torch.equal(suffix.replaced(value)[target], whole[target]) for target in suffix.targets)


def end_of_clip(visual: Any, x: Tensor) -> Tensor:
    return visual.ln_post(visual.transformer.resblocks[4](x))[:, 0] @ visual.proj


@pytest.mark.parametrize(
    ("name", "site", "end"),
    [
        ("clip-p8", "resid_post.3", lambda root, x: end_of_clip(root.visual, x)),
        ("clip-rn", "stage.3", lambda root, x: root.visual.attnpool(root.visual.layer4(x))),
        ("resnet-sup", "conv.3.0.out", lambda root, x: root.resnet.pooler(root.resnet.encoder.stages[3](x)).flatten(1)),
    ],
)  # fmt: skip
def test_only_what_follows_the_site_is_computed_again(
    name: str, site: str, end: Callable[[Any, Tensor], Tensor]
) -> None:
    """As many operations as the library's own modules after the site take, called by hand."""
    model = get_model(name)
    suffix = Suffix(model, site, ["embedding"])
    (tap,) = model.sites([whole_site(model.facts.site(site))])
    value = 2 * suffix.begin(IMAGES, [tap])[str(tap)]
    found = []
    for answer in (
        lambda: end(model.module, value),
        lambda: suffix.replaced(value)["embedding"],
        lambda: suffix.edited([Edit(Site(path=site), "scale", 2.0)])["embedding"],
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            found.append((answer(), counter.get_total_flops()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][0], found[2][0])
    assert 0 < found[0][1] == found[1][1] == found[2][1]


@pytest.mark.parametrize(
    ("name", "tap", "start", "message"),
    [
        ("clip-p8", "embedding", "resid_post.1", r"start resid_post.1: .* can start at resid_pre\.\*, resid_mid\.\*"),
        ("clip-rn", "embedding", "stage.1", r"start stage.1: .* can start at stem, conv\.\*\.\*\.out"),
        ("clip-rn", "conv.2.0.act1", "conv.2.0.out", "conv.2.0.act1 comes before the start conv.2.0.out"),
        ("clip-rn", "module:visual.bn1", "stem", "module:visual.bn1 comes before the start stem"),
        ("clip-p8", "module:visual.conv1", "resid_pre.0", "module:visual.conv1 comes before the start"),
    ],
)  # fmt: skip
def test_a_start_where_there_is_none_is_refused(name: str, tap: str, start: str, message: str) -> None:
    with pytest.raises(UnknownSite, match=message):
        get_model(name).run(None, [tap], start=CachedBlock(start, torch.zeros(3, 1)))


def test_the_output_of_a_block_is_the_input_of_the_next() -> None:
    model = get_model("clip-p8")
    site = latest_name(model, Site.parse("resid_post.2@cls"))
    assert str(site) == "resid_pre.3@cls"
    out = model.run(IMAGES, ["resid_post.2@cls", site])
    assert torch.equal(out["resid_post.2@cls"], out["resid_pre.3@cls"])
    assert str(latest_name(model, Site.parse("resid_post.4@cls"))) == "resid_post.4@cls"  # the last block
    assert str(latest_name(model, Site.parse("mlp_out.2"))) == "mlp_out.2"
