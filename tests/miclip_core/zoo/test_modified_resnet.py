"""CLIP's ModifiedResNet under the contract: tiny in float64 in three spellings of its ReLUs, and RN50 at real size."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miclip_core.zoo.edits import Edit
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.openclip import built
from schemas.errors import UnknownSite, UnsupportedBlock
from schemas.refs import ModelRef, Site
from tests.miclip_core.zoo import oracles
from tests.miclip_core.zoo.contract import (
    AnyModel,
    Handwritten,
    LateAtRealSize,
    Subject,
    hooked_input,
    hooked_output,
    tiny_model,
)

TINY: dict[str, Any] = {
    "embed_dim": 6,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 4, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 2, "layers": 1},
}
HANDWRITTEN: Handwritten = {
    "stem": hooked_output("visual.avgpool"),
    "conv.2.0.act1": hooked_output("visual.layer2.0.act1"),
    "conv.2.0.act2": hooked_output("visual.layer2.0.act2"),
    "conv.2.1.out": hooked_output("visual.layer2.1.act3"),
    "stage.3": hooked_output("visual.layer3"),
    "pool_in": hooked_input("visual.attnpool"),
    "embedding": hooked_output("visual"),
}


def encode(root: Any, images: Tensor) -> Tensor:
    return root.encode_image(images)


class SharedReLU(nn.Module):
    """A bottleneck as old copies write it: one in-place ReLU, called three times."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        for name in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "avgpool", "downsample"):
            setattr(self, name, getattr(block, name))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def _built(shared: bool) -> Any:
    made: Any = built("tiny", TINY, {})
    if shared:
        for stage in (made.visual.layer1, made.visual.layer2, made.visual.layer3, made.visual.layer4):
            for number, block in enumerate(stage):
                stage[number] = SharedReLU(block)
    return made


class TestTiny(AnyModel):
    @pytest.fixture(scope="class", params=[False, True], ids=["own ReLUs", "one shared ReLU"])
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        torch.manual_seed(1)
        names = [path for path in HANDWRITTEN if not (request.param and path.startswith("conv"))]
        oracles = {path: HANDWRITTEN[path] for path in names}
        model = tiny_model(partial(_built, request.param))
        return Subject(model, torch.randn(3, 3, 64, 64, dtype=torch.float64), encode, oracles, patch_site="stage.3")

    def activation_module(self, model: VisionModel) -> nn.Module:
        block: Any = model.module.visual.layer1[0]  # type: ignore[union-attr]
        return block.relu if hasattr(block, "relu") else block.act1

    def test_heads_and_positions_of_the_pool_add_up_to_its_output(self, subject: Subject) -> None:
        pool: Any = subject.model.module.visual.attnpool  # type: ignore[union-attr]
        out = subject.model.run(subject.images, ["pool_pattern", "pool_v", "pool_out"])
        C_EHX = pool.c_proj.weight.unflatten(1, (pool.num_heads, -1))
        per_head_and_position = torch.einsum("bht,bhtx,ehx->bhte", out["pool_pattern@all"], out["pool_v@all"], C_EHX)
        assert subject.close(per_head_and_position.sum((1, 2)) + pool.c_proj.bias, out["pool_out"])
        assert subject.close(out["pool_pattern@all"].sum(-1), torch.ones(len(subject.images), pool.num_heads))


class TestRealSize(LateAtRealSize):
    @pytest.fixture(scope="class")
    def subject(self) -> Subject:
        torch.manual_seed(1)
        model = load_model(ModelRef.parse("open_clip:RN50/random(0)"))
        return Subject(model, torch.randn(2, 3, 224, 224), encode, HANDWRITTEN, 1e-5)

    test_taps = AnyModel.test_taps_equal_hooks_written_by_hand_on_the_library_model
    test_noop = AnyModel.test_tapping_everything_leaves_the_embedding_as_it_was
    test_shapes = AnyModel.test_every_declared_site_has_the_declared_shape
    test_pool = TestTiny.test_heads_and_positions_of_the_pool_add_up_to_its_output

    def test_every_site_equals_hooks_and_formulas(self, subject: Subject) -> None:
        root = subject.model.module
        expected = oracles.modified_resnet(root, oracles.watch(root, subject.images, encode))
        oracles.assert_every_site(subject.model, subject.images, expected)


def test_a_tap_before_the_in_place_addition_keeps_its_value() -> None:
    """bn3's output is overwritten by the residual sum; the raw module site must show what bn3 returned."""
    path = "module:visual.layer2.1.bn3"
    model = tiny_model(partial(_built, False), modules=[path])
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    out = model.run(images, [path, "module:visual.layer2.1.bn3@map:mean"], stop="end")
    by_hand = hooked_output("visual.layer2.1.bn3")(model.module, images, encode)
    assert torch.equal(out[f"{path}@map"], by_hand)
    assert torch.allclose(out[f"{path}@map:mean"], by_hand.mean((2, 3)))


def test_patch_tokens_and_blocks_are_refused_with_the_way_to_write_it() -> None:
    model = tiny_model(partial(_built, False))
    with pytest.raises(UnknownSite, match="a convolutional map has no patch tokens, write @map"):
        model.sites(["conv.2.1.out@patch"])
    with pytest.raises(UnknownSite, match=r"tiny has blocks 0\.\.1 at conv\.2"):
        model.sites(["conv.2.5.out"])
    with pytest.raises(UnsupportedBlock, match="no attention blocks"):
        model.weights(0)
    assert [str(site) for site in model.sites(["conv.2.*.out:mean", "conv.-1.-1.act2"])] == [
        "conv.2.0.out@map:mean",
        "conv.2.1.out@map:mean",
        "conv.4.0.act2@map",
    ]


def test_setting_a_channel_to_its_mean_per_position_edits_only_that_channel() -> None:
    model = tiny_model(partial(_built, False))
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    plain = model.run(images, ["stage.3"])["stage.3@map"]
    table = plain.mean(0)[3].flatten()[:, None]  # [positions, 1 channel]
    out = model.run(images, ["stage.3"], [Edit(Site(path="stage.3"), "mean", table, channels=[3])])["stage.3@map"]
    assert torch.allclose(out[:, 3], plain.mean(0)[3].expand(2, -1, -1))
    assert torch.equal(out[:, :3], plain[:, :3]) and torch.equal(out[:, 4:], plain[:, 4:])


def test_a_shared_relu_is_told_apart_by_the_number_of_its_call() -> None:
    """The same weights in both spellings: act1, act2 and out agree, though one ReLU module serves all three."""
    own, shared = tiny_model(partial(_built, False)), tiny_model(partial(_built, True))
    shared.module.load_state_dict(own.module.state_dict())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    taps = [f"conv.2.1.{name}" for name in ("act1", "act2", "out")]
    a, b = own.run(images, taps, stop="end"), shared.run(images, taps, stop="end")
    for name in a:
        assert torch.equal(a[name], b[name]), name
