"""The transformers library's ResNet under the contract: both block kinds tiny in float64, ResNet-50 at real size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miclip_core.zoo.hf import Blueprint, transformers
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from schemas.errors import UnknownSite
from schemas.refs import ModelRef
from tests.miclip_core.zoo import oracles
from tests.miclip_core.zoo.contract import AnyModel, Handwritten, LateAtRealSize, Subject, hooked_output, tiny_model

TINY: dict[str, Any] = {"embedding_size": 6, "hidden_sizes": [8, 12], "depths": [1, 2]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bottlenecks": ("ResNetModel", {"hidden_sizes": [8, 16]}),
    "basic blocks, classifier": ("ResNetForImageClassification", {"layer_type": "basic", "num_labels": 3}),
    "stride in the first stage": ("ResNetModel", {"downsample_in_first_stage": True, "downsample_in_bottleneck": True}),
}
IMAGE = {"size": {"height": 40, "width": 32}}  # oblong, and not a power of two


def features(root: Any, images: Tensor) -> Tensor:
    return root.base_model(pixel_values=images).pooler_output.flatten(1)


def handwritten(prefix: str, last: tuple[int, int], acts: int) -> Handwritten:
    """Plain hooks on the module paths of the first and the last block; ours count stages from 1."""
    stage = last[0]
    oracles: Handwritten = {
        "stem": hooked_output(f"{prefix}embedder"),
        "stage.1": hooked_output(f"{prefix}encoder.stages.0"),
        f"stage.{stage + 1}": hooked_output(f"{prefix}encoder.stages.{stage}"),
        "pooled": lambda *args: hooked_output(f"{prefix}pooler")(*args).flatten(1),
    }
    for s, b in ((0, 0), last):
        path = f"{prefix}encoder.stages.{s}.layers.{b}"
        for act in range(acts):
            oracles[f"conv.{s + 1}.{b}.act{act + 1}"] = hooked_output(f"{path}.layer.{act}.activation")
        oracles[f"conv.{s + 1}.{b}.out"] = hooked_output(f"{path}.activation")
    return oracles


class TestTiny(AnyModel):
    @pytest.fixture(scope="class", params=list(VARIANTS))
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        torch.manual_seed(1)
        kind, more = VARIANTS[request.param]
        config = transformers.ResNetConfig(**{**TINY, **more})
        model = tiny_model(Blueprint(request.param, getattr(transformers, kind), config, IMAGE).build)
        basic = more.get("layer_type") == "basic"
        oracles = handwritten("resnet." if "classifier" in request.param else "", (1, 1), 1 if basic else 2)
        eighth = "stage.1" if "stride" in request.param else "stage.2"  # positions of 8 x 8 pixels
        return Subject(model, torch.randn(3, 3, 40, 32, dtype=torch.float64), features, oracles, patch_site=eighth)

    def activation_module(self, model: VisionModel) -> nn.Module:
        return model.family.sites["conv.1.0.act1"].module  # type: ignore[union-attr]

    def test_the_grid_is_that_of_the_last_stage(self, subject: Subject) -> None:
        assert subject.model.facts.grid == subject.model.facts.site("stage.2").grid

    def test_the_embedding_is_the_mean_over_the_last_stage(self, subject: Subject) -> None:
        out = subject.model.run(subject.images, ["stage.2", "embedding"])
        rho = subject.model.readout().rho
        assert rho is not None
        assert subject.close(out["stage.2@map"].flatten(2) @ rho, out["embedding"])

    def test_token_selectors_and_patterns_do_not_exist(self, subject: Subject) -> None:
        with pytest.raises(UnknownSite, match="write @map"):
            subject.model.sites(["stage.2@patch"])
        with pytest.raises(UnknownSite, match="has no site pattern"):
            subject.model.sites(["pattern.0"])

    def test_logits_are_the_classifiers(self, subject: Subject) -> None:
        root: Any = subject.model.module
        if hasattr(root, "classifier"):
            with torch.no_grad():
                assert torch.equal(subject.model.logits(subject.images), root(pixel_values=subject.images).logits)
            assert subject.model.facts.classes == ("LABEL_0", "LABEL_1", "LABEL_2")


class TestRealSize(LateAtRealSize):
    """ResNet-50 with random weights."""

    @pytest.fixture(scope="class")
    def subject(self) -> Subject:
        torch.manual_seed(1)
        model = load_model(ModelRef.parse("hf:resnet/random(0)"))
        oracles = handwritten("", (3, 2), 2)
        return Subject(model, torch.randn(1, 3, 224, 224), features, oracles, 1e-5)

    test_taps = AnyModel.test_taps_equal_hooks_written_by_hand_on_the_library_model
    test_noop = AnyModel.test_tapping_everything_leaves_the_embedding_as_it_was
    test_shapes = AnyModel.test_every_declared_site_has_the_declared_shape

    def test_every_site_equals_hooks_and_formulas(self, subject: Subject) -> None:
        root = subject.model.module
        expected = oracles.hf_resnet(root, oracles.watch(root, subject.images, features))
        oracles.assert_every_site(subject.model, subject.images, expected)

    def test_facts_are_those_of_resnet_50(self, subject: Subject) -> None:
        facts = subject.model.facts
        assert (facts.n_blocks, facts.width, facts.embed_dim, facts.grid) == (16, 2048, 2048, (7, 7))
        assert (facts.n_heads, facts.act_kind, facts.pool, facts.params) == (None, "relu", "avg", 23_508_032)
        assert abs(facts.flops / 8.2e9 - 1) < 0.02
