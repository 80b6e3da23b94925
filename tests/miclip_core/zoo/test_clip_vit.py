"""CLIP's native vision transformer under the contract: its variants tiny in float64, and ViT-B/32 once at real size."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miclip_core.zoo.edits import Edit
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.openclip import built
from schemas.errors import UnknownSite
from schemas.refs import ModelRef, Site
from tests.miclip_core.zoo import oracles
from tests.miclip_core.zoo.contract import (
    AnyModel,
    Forward,
    Handwritten,
    Subject,
    TransformerBlocks,
    hooked_input,
    hooked_output,
    tiny_model,
)

TINY: dict[str, Any] = {
    "embed_dim": 6,
    "vision_cfg": {"image_size": [12, 8], "layers": 2, "width": 16, "head_width": 8, "patch_size": 4, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 2, "layers": 1},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "quick gelu": {"quick_gelu": True},
    "layer scale, mean pooling": {"vision_cfg": {"ls_init_value": 0.1, "pool_type": "avg"}},
    "norm after pooling, no first norm": {
        "vision_cfg": {"final_ln_after_pool": True, "no_ln_pre": True, "pool_type": "avg"}
    },
    "normalised queries and keys": {"vision_cfg": {"block_type": "custom", "qk_norm": True, "scale_fc": True}},
    "head scales": {"vision_cfg": {"block_type": "custom", "scale_heads": True}},
    "sequence first": {},
}


def encode(root: Any, images: Tensor) -> Tensor:
    return root.encode_image(images)


def tiny(variant: str) -> VisionModel:
    config = deepcopy(TINY)
    for key, value in VARIANTS[variant].items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    return tiny_model(partial(_built, config, variant == "sequence first"))


def _built(config: dict[str, Any], sequence_first: bool) -> Any:
    made = built("tiny", config, {})
    if sequence_first:
        transformer: Any = made.visual.transformer
        transformer.batch_first = False
        for block in transformer.resblocks:
            block.attn.batch_first = False
    return made


def handwritten(sequence_first: bool) -> Handwritten:
    """Plain hooks on module paths, and the patterns that torch's own attention returns when asked for weights."""
    block = "visual.transformer.resblocks.1"

    def turned(look: Any) -> Any:
        return (lambda *args: look(*args).transpose(0, 1)) if sequence_first else look

    return {
        "embed": hooked_input("visual.ln_pre"),
        "resid_pre.1": turned(hooked_input(block)),
        "resid_post.1": turned(hooked_output(block)),
        "resid_mid.1": turned(hooked_input(f"{block}.ln_2")),
        "ln1_out.1": turned(hooked_output(f"{block}.ln_1")),
        "ln2_out.1": turned(hooked_output(f"{block}.ln_2")),
        "attn_out.1": turned(hooked_output(f"{block}.ls_1")),
        "mlp_pre.1": turned(hooked_output(f"{block}.mlp.c_fc")),
        "mlp_act.1": turned(hooked_input(f"{block}.mlp.c_proj")),
        "mlp_out.1": turned(hooked_output(f"{block}.ls_2")),
        "lnf_in": hooked_input("visual.ln_post"),
        "lnf_out": hooked_output("visual.ln_post"),
        "embedding": hooked_output("visual"),
    }


def torch_patterns(root: Any, images: Tensor, forward: Forward) -> Tensor:
    """Attention weights of block 1 as torch's own module reports them on its slow path."""
    attention, seen = root.visual.transformer.resblocks[1].attn, []

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    handles = [
        attention.register_forward_pre_hook(ask, with_kwargs=True),
        attention.register_forward_hook(lambda module, args, output: seen.append(output[1].clone())),
    ]
    with torch.no_grad():
        forward(root, images)
    for handle in handles:
        handle.remove()
    return seen[0]


class OpenAIActivation:
    def activation_module(self, model: VisionModel) -> nn.Module:
        return model.module.visual.transformer.resblocks[0].mlp.gelu  # type: ignore[union-attr]

    def plain_queries(self, model: VisionModel) -> bool:
        return not hasattr(model.module.visual.transformer.resblocks[0].attn, "ln_q")  # type: ignore[union-attr]


class TestTiny(OpenAIActivation, AnyModel, TransformerBlocks):
    @pytest.fixture(scope="class", params=list(VARIANTS))
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        torch.manual_seed(1)
        model = tiny(request.param)
        oracles = handwritten(request.param == "sequence first")
        if model.family.blocks[0].attention.pick == 0:
            oracles["pattern.1"] = torch_patterns
        return Subject(model, torch.randn(3, 3, 12, 8, dtype=torch.float64), encode, oracles)


class TestRealSize(OpenAIActivation):
    """ViT-B/32 with random weights: hooks by hand to 1e-5, sums, and exact shapes."""

    @pytest.fixture(scope="class")
    def subject(self) -> Subject:
        torch.manual_seed(1)
        model = load_model(ModelRef.parse("open_clip:ViT-B-32-quickgelu/random(0)"))
        return Subject(
            model, torch.randn(2, 3, 224, 224), encode, handwritten(False) | {"pattern.1": torch_patterns}, 1e-5
        )

    test_taps = AnyModel.test_taps_equal_hooks_written_by_hand_on_the_library_model
    test_noop = AnyModel.test_tapping_everything_leaves_the_embedding_as_it_was
    test_shapes = AnyModel.test_every_declared_site_has_the_declared_shape
    test_sums = TransformerBlocks.test_branches_add_up_to_the_residual
    test_readout = TransformerBlocks.test_the_readout_rebuilds_the_embedding
    test_mlp = TransformerBlocks.test_neurons_and_the_output_matrix_give_the_mlp_output
    all_blocks = TransformerBlocks.all_blocks

    def test_every_site_of_three_blocks_equals_hooks_and_formulas(self, subject: Subject) -> None:
        root, blocks = subject.model.module, (0, 6, 11)
        expected = oracles.clip_vit(root, oracles.watch(root, subject.images, encode), blocks)
        oracles.assert_every_site(subject.model, subject.images, expected, blocks)

    def test_one_image_alone_gives_what_it_gives_in_a_batch(self, subject: Subject) -> None:
        taps = ["embedding", "mlp_act.11@cls", "resid_post.6@patch:mean"]
        both, alone = subject.model.run(subject.images, taps), subject.model.run(subject.images[:1], taps)
        for name in taps:
            assert subject.close(alone[name], both[name][:1]), name

    def test_facts_are_those_of_the_published_architecture(self, subject: Subject) -> None:
        facts = subject.model.facts
        assert (facts.n_blocks, facts.n_heads, facts.head_dim, facts.width, facts.mlp_width, facts.embed_dim) == (
            12, 12, 64, 768, 3072, 512,
        )  # fmt: skip
        assert (facts.grid, facts.n_prefix, facts.act_kind, facts.norm_eps) == ((7, 7), 1, "quick_gelu", 1e-5)
        assert facts.params == 151_277_313
        assert abs(facts.flops / 8.8e9 - 1) < 0.01  # published: 4.4 G multiply-adds, 8.8 GFLOP an image


def test_sequence_first_and_batch_first_towers_give_the_same_sites() -> None:
    torch.manual_seed(2)
    images = torch.randn(3, 3, 12, 8, dtype=torch.float64)  # 3 images, 7 tokens
    one, other = tiny("plain"), tiny("sequence first")
    taps = [site.path for site in one.facts.sites]
    a, b = one.run(images, taps), other.run(images, taps)
    for name in a:
        assert torch.allclose(a[name], b[name], atol=1e-12), name


def test_an_inner_norm_has_no_head_split_but_has_patterns() -> None:
    config = deepcopy(TINY)
    config["vision_cfg"] |= {"block_type": "custom", "scale_attn_inner": True}
    model = tiny_model(partial(_built, config, False))
    with pytest.raises(UnknownSite, match="has no site head_result"):
        model.sites(["head_result.0"])
    assert model.facts.has_inner_attn_norm
    images = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    out = model.run(images, ["z.0", "attn_out.0"])
    again = model.run(images, ["attn_out.0"], [Edit(Site(path="z.0"), "set", out["z.0@all"])])
    assert torch.allclose(again["attn_out.0@all"], out["attn_out.0@all"], atol=1e-12)
