"""timm's ResNets and ConvNeXts under the contract, torchvision's shared ReLU, and models that no family knows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miclip_core.zoo.edits import Edit
from miclip_core.zoo.inspect import describe_model
from miclip_core.zoo.load import find_family, load_model
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.recipe import Built
from miclip_core.zoo.timm_models import geometry_of
from schemas.errors import UnknownSite, UnsupportedBlock
from schemas.refs import ModelRef, Site
from tests.miclip_core.zoo import oracles
from tests.miclip_core.zoo.contract import (
    AnyModel,
    Handwritten,
    LateAtRealSize,
    Subject,
    TransformerBlocks,
    hooked_input,
    hooked_output,
    tiny_model,
)

import timm  # isort: skip - after the library is importable
import torchvision  # isort: skip

INPUT = {"input_size": (3, 64, 64), "crop_pct": 1.0}
RESNET = partial(timm.create_model, "resnet18", channels=(4, 6, 8, 8), stem_width=4, pretrained_cfg_overlay=INPUT)
CONVNEXT = partial(
    timm.create_model, "convnext_atto", depths=(1, 2, 1, 1), dims=(4, 6, 8, 8), pretrained_cfg_overlay=INPUT
)


def torchvision_resnet() -> nn.Module:
    """torchvision's own class: each block calls one in-place ReLU several times."""
    root = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5, width_per_group=4
    )
    root.pretrained_cfg = INPUT  # where the input size is said
    return root


RESNETS: dict[str, Callable[..., nn.Module]] = {
    "basic blocks, classifier": partial(RESNET, layers=(1, 2, 1, 1), num_classes=5),
    "bottlenecks": partial(
        timm.create_model, "resnet26d", layers=(1, 1, 1, 1), channels=(2, 2, 3, 3), num_classes=0,
        pretrained_cfg_overlay=INPUT,
    ),
}  # fmt: skip
CONVNEXTS: dict[str, Callable[..., nn.Module]] = {
    "channels last, classifier": partial(CONVNEXT, num_classes=5, conv_mlp=False),
    "channels first": partial(CONVNEXT, num_classes=0, conv_mlp=True),
    "response norm": partial(CONVNEXT, num_classes=0, use_grn=True, ls_init_value=None, conv_mlp=False),
}


def built(make: Callable[..., nn.Module]) -> Built:
    root: Any = make().eval()
    return Built(root=root, visual=root, geometry=geometry_of(root.pretrained_cfg))


def last_layer(root: Any) -> nn.Module:
    return root.fc if hasattr(root, "fc") else root.head.fc


def features(root: Any, images: Tensor) -> Tensor:
    """What the last layer reads."""
    seen: list[Tensor] = []
    with last_layer(root).register_forward_pre_hook(lambda module, args: seen.append(args[0].clone())):
        root(images)
    return seen[0]


def tiny_subject(make: Callable[..., nn.Module], oracles: Callable[[Any], Handwritten]) -> Subject:
    torch.manual_seed(1)
    model = tiny_model(partial(built, make))
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    return Subject(model, images, features, oracles(model.module), patch_site="stage.3")


def resnet_oracles(root: Any) -> Handwritten:
    found = {
        "stem": hooked_output("maxpool"),
        "conv.2.0.out": hooked_output("layer2.0"),
        "stage.3": hooked_output("layer3"),
        "pooled": hooked_input("fc"),
    }
    own = {"conv.2.0.act1": hooked_output("layer2.0.act1")}
    return found if hasattr(root.layer2[0], "relu") else found | own


def convnext_oracles(root: Any, prefix: str = "") -> Handwritten:
    last = root.stages[0].blocks[0].use_conv_mlp

    def neurons(*args: Any) -> Tensor:
        seen = hooked_input(f"{prefix}stages.1.blocks.0.mlp.fc2")(*args)
        return seen if last else seen.permute(0, 3, 1, 2)

    return {
        "stem": hooked_output(f"{prefix}stem"),
        "conv.2.0.dw": hooked_output(f"{prefix}stages.1.blocks.0.conv_dw"),
        "conv.2.0.act1": neurons,
        "conv.2.0.out": hooked_output(f"{prefix}stages.1.blocks.0"),
        "stage.3": hooked_output(f"{prefix}stages.2"),
        "lnf_in": lambda *args: hooked_output(f"{prefix}head.global_pool")(*args).flatten(1),
        "pooled": hooked_input(f"{prefix}head.fc"),
    }


class ConvNet:
    def editable(self, model: VisionModel) -> list[str]:
        return [path for path in AnyModel.editable(self, model) if path != "logits"]  # type: ignore[arg-type]


class TestResNet(ConvNet, AnyModel):
    @pytest.fixture(scope="class", params=["basic blocks, classifier", "bottlenecks"])
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        return tiny_subject(RESNETS[request.param], resnet_oracles)

    def activation_module(self, model: VisionModel) -> nn.Module:
        block: Any = model.module.layer1[0]  # type: ignore[union-attr]
        return block.relu if hasattr(block, "relu") else block.act1

    def test_one_bright_patch_changes_exactly_that_place(self, subject: Subject) -> None:
        """A stride of 2 with a 3 x 3 kernel centres position i on input 2 i: the peak may lie one position further."""
        model = subject.model
        for row, column in ((2, 12), (12, 2)):
            changed = torch.zeros(2, 3, 64, 64, dtype=torch.float64)
            changed[1, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 3.0
            out = model.run(changed, ["stage.1"])["stage.1@map"]
            found = divmod(int((out[1] - out[0]).abs().sum(0).argmax()), 16)
            assert abs(found[0] - row) <= 1 and abs(found[1] - column) <= 1

    def test_the_mean_over_positions_is_the_embedding(self, subject: Subject) -> None:
        out, rho = subject.model.run(subject.images, ["stage.4", "embedding"]), subject.model.readout().rho
        assert rho is not None
        assert subject.close(out["stage.4@map"].flatten(2) @ rho, out["embedding"])


class TestTorchvision(ConvNet):
    """The sentences that depend on the shared ReLU."""

    @pytest.fixture(scope="class")
    def subject(self) -> Subject:
        return tiny_subject(torchvision_resnet, resnet_oracles)

    test_shapes = AnyModel.test_every_declared_site_has_the_declared_shape
    test_noop = AnyModel.test_tapping_everything_leaves_the_embedding_as_it_was
    test_taps = AnyModel.test_taps_equal_hooks_written_by_hand_on_the_library_model


class TestConvNeXt(ConvNet, AnyModel):
    @pytest.fixture(scope="class", params=list(CONVNEXTS))
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        return tiny_subject(CONVNEXTS[request.param], convnext_oracles)

    def activation_module(self, model: VisionModel) -> nn.Module:
        root: Any = model.module
        return root.stages[0].blocks[0].mlp.act

    test_readout = TransformerBlocks.test_the_readout_rebuilds_the_embedding

    def test_neurons_and_the_output_matrix_give_what_the_block_adds(self, subject: Subject) -> None:
        block: Any = subject.model.module.stages[1].blocks[1]  # type: ignore[union-attr,index]
        taps = ["conv.2.0.out", "conv.2.1.act1", "conv.2.1.branch", "conv.2.1.out"]
        out = {key.removesuffix("@map"): value for key, value in subject.model.run(subject.images, taps).items()}
        weight = block.mlp.fc2.weight.flatten(1)
        summed = torch.einsum("bnij,cn->bcij", out["conv.2.1.act1"], weight) + block.mlp.fc2.bias[:, None, None]
        scaled = summed if block.gamma is None else summed * block.gamma[:, None, None]
        assert subject.close(scaled, out["conv.2.1.branch"])
        assert subject.close(out["conv.2.0.out"] + out["conv.2.1.branch"], out["conv.2.1.out"])

    def test_the_mean_over_positions_is_what_the_final_norm_reads(self, subject: Subject) -> None:
        out, rho = subject.model.run(subject.images, ["stage.4", "lnf_in"]), subject.model.readout().rho
        assert rho is not None
        assert subject.close(out["stage.4@map"].flatten(2) @ rho, out["lnf_in"])


class TestRealSize(LateAtRealSize):
    @pytest.fixture(
        scope="class",
        params=[
            "timm:resnet18",
            "timm:convnext_atto",
            pytest.param("timm:resnet50", marks=pytest.mark.slow),
            pytest.param("timm:convnextv2_atto", marks=pytest.mark.slow),
            pytest.param("open_clip:convnext_base", marks=pytest.mark.slow),
        ],
    )
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        torch.manual_seed(1)
        model = load_model(ModelRef.parse(f"{request.param}/random(0)"))
        images = torch.randn(1, 3, *model.facts.input_hw)
        if "resnet" in request.param:
            return Subject(model, images, features, resnet_oracles(model.module), 1e-5)
        root: Any = model.module
        if request.param.startswith("open_clip"):
            oracles = convnext_oracles(root.visual.trunk, "visual.trunk.")
            return Subject(model, images, lambda root, x: root.encode_image(x), oracles, 1e-5)
        return Subject(model, images, features, convnext_oracles(root), 1e-5)

    test_taps = AnyModel.test_taps_equal_hooks_written_by_hand_on_the_library_model
    test_noop = AnyModel.test_tapping_everything_leaves_the_embedding_as_it_was


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("resnet18", oracles.timm_resnet),
        ("convnext_atto", oracles.timm_convnext),
        pytest.param("resnet50", oracles.timm_resnet, marks=pytest.mark.slow),
        pytest.param("convnextv2_atto", oracles.timm_convnext, marks=pytest.mark.slow),
    ],
)
def test_every_site_at_real_size_equals_hooks_and_formulas(
    name: str, oracle: Callable[[Any, oracles.Seen], oracles.Expected]
) -> None:
    model = load_model(ModelRef.parse(f"timm:{name}/random(0)"))
    images = torch.randn(1, 3, *model.facts.input_hw, generator=torch.Generator().manual_seed(1))
    expected = oracle(model.module, oracles.watch(model.module, images, features))
    oracles.assert_every_site(model, images, expected)


def test_a_shared_relu_is_told_apart_by_the_number_of_its_call() -> None:
    model = tiny_model(partial(built, torchvision_resnet))
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    root: Any = model.module
    block, before = root.layer2[0], model.run(images, ["stage.1"])["stage.1@map"]
    act1 = block.bn1(block.conv1(before)).relu()
    act2 = block.bn2(block.conv2(act1)).relu()
    out = model.run(images, ["conv.2.0.act1", "conv.2.0.act2"], stop="end")
    assert torch.allclose(out["conv.2.0.act1@map"], act1) and torch.allclose(out["conv.2.0.act2@map"], act2)


# ---------------------------------------------------------------- models that no family knows


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=2, embed_dim=8, depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2), num_classes=5, pretrained_cfg_overlay=INPUT,
    )  # fmt: skip


class TestRaw(ConvNet, AnyModel):
    """A Swin transformer: its maps are channels-last, and only module paths name them."""

    @pytest.fixture(scope="class")
    def subject(self) -> Subject:
        torch.manual_seed(1)
        paths = ["module:layers.0", "module:layers.2.blocks.0.mlp.fc1", "module:norm"]
        model = tiny_model(partial(built, swin), modules=paths)
        oracles = {
            "module:layers.0": lambda *args: hooked_output("layers.0")(*args).permute(0, 3, 1, 2),
            "module:layers.2.blocks.0.mlp.fc1": lambda *args: hooked_output("layers.2.blocks.0.mlp.fc1")(*args),
            "logits": hooked_output("head"),
        }
        images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        return Subject(model, images, lambda root, x: features_of_swin(root, x), oracles, patch_site="module:layers.0")


def features_of_swin(root: Any, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    with root.head.fc.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone())):
        root(images)
    return seen[0]


def test_a_raw_model_says_which_sites_it_has_and_refuses_the_rest() -> None:
    model = tiny_model(partial(built, swin))
    with pytest.raises(UnknownSite, match="has no site resid_post; it has pooled, embedding, logits"):
        model.sites(["resid_post.0"])
    with pytest.raises(UnsupportedBlock, match="no attention blocks"):
        model.weights(0)


def test_an_edit_of_a_raw_module_reaches_the_output() -> None:
    path = "module:layers.3"
    model = tiny_model(partial(built, swin), modules=[path])
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    plain = model.embed_images(images)
    assert not torch.allclose(
        model.run(images, ["embedding"], [Edit(Site(path=path), "scale", 0.5)])["embedding"], plain
    )


def test_a_model_that_does_not_say_its_input_size_is_refused_by_name() -> None:
    root = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    made = Built(root=root, visual=root, geometry=geometry_of(INPUT))
    with pytest.raises(UnsupportedBlock, match="mine: Sequential does not say which image size it takes"):
        describe_model("mine", made, find_family("mine", made), "0" * 64, "1" * 64, None, {})
