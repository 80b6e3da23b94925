"""CoCa's image tower under the contract: tiny in float64, the published base at real size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.openclip import built
from schemas.refs import ModelRef
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
    "embed_dim": 8,
    "vision_cfg": {
        "image_size": [12, 8], "layers": 2, "width": 16, "head_width": 8, "patch_size": 4, "mlp_ratio": 2.0,
        "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 3, "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 7, "vocab_size": 64, "width": 8, "heads": 2, "layers": 1, "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 7, "vocab_size": 64, "width": 8, "heads": 2, "layers": 1, "attn_pooler_heads": 2},
    "custom_text": True,
}  # fmt: skip


def encode(root: Any, images: Tensor) -> Tensor:
    return root.encode_image(images, normalize=False)


def pool_weights(root: Any, images: Tensor, forward: Forward) -> Tensor:
    """The first query's attention, as torch's own module reports it on its slow path."""
    attention, seen = root.visual.attn_pool.attn, []

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    with (
        attention.register_forward_pre_hook(ask, with_kwargs=True),
        attention.register_forward_hook(lambda module, args, output: seen.append(output[1].clone())),
        torch.no_grad(),
    ):
        forward(root, images)
    return seen[0][:, :, 0]


HANDWRITTEN: Handwritten = {
    "embed": hooked_input("visual.ln_pre"),
    "resid_post.1": hooked_output("visual.transformer.resblocks.1"),
    "mlp_act.1": hooked_input("visual.transformer.resblocks.1.mlp.c_proj"),
    "lnf_in": hooked_input("visual.attn_pool"),
    "lnf_out": hooked_output("visual.attn_pool.ln_k"),
    "pool_pattern": pool_weights,
    "pool_out": lambda *args: hooked_output("visual.attn_pool")(*args)[:, 0],
    "pooled": lambda *args: hooked_output("visual.ln_post")(*args)[:, 0],
}


class CoCa:
    def activation_module(self, model: VisionModel) -> nn.Module:
        return model.module.visual.transformer.resblocks[0].mlp.gelu  # type: ignore[union-attr]

    def test_heads_and_tokens_of_the_pool_add_up_to_the_embedding(self, subject: Subject) -> None:
        visual: Any = subject.model.module.visual
        taps = ["pool_pattern", "pool_v", "pool_out", "pooled", "embedding"]
        out = {key.split("@")[0]: value for key, value in subject.model.run(subject.images, taps).items()}
        projection = visual.attn_pool.attn.out_proj
        W_EHX = projection.weight.unflatten(1, (visual.attn_pool.attn.num_heads, -1))
        parts = torch.einsum("bht,bhtx,ehx->bhte", out["pool_pattern"], out["pool_v"], W_EHX)
        assert subject.close(parts.sum((1, 2)) + projection.bias, out["pool_out"])
        assert subject.close(visual.ln_post(out["pool_out"]), out["pooled"])
        assert subject.close(out["pooled"] @ subject.model.readout().projection, out["embedding"])


class TestTiny(CoCa, AnyModel, TransformerBlocks):
    @pytest.fixture(scope="class")
    def subject(self) -> Subject:
        torch.manual_seed(1)
        model = tiny_model(lambda: built("tiny", TINY, {}))
        return Subject(model, torch.randn(2, 3, 12, 8, dtype=torch.float64), encode, HANDWRITTEN)

    def test_the_text_tower_does_not_normalise(self, subject: Subject) -> None:
        assert subject.model.text is not None
        ids = torch.randint(1, 60, (2, 6))
        by_hand = subject.model.module.encode_text(ids, normalize=False)  # type: ignore[operator]
        assert torch.equal(subject.model.text.encode(ids), by_hand)
        assert not torch.allclose(by_hand.norm(dim=-1), torch.ones(2, dtype=by_hand.dtype))


@pytest.mark.slow
class TestRealSize(CoCa):
    @pytest.fixture(scope="class")
    def subject(self) -> Subject:
        torch.manual_seed(1)
        model = load_model(ModelRef.parse("open_clip:coca_ViT-B-32/random(0)"))
        return Subject(model, torch.randn(2, 3, 224, 224), encode, HANDWRITTEN, 1e-5)

    test_taps = AnyModel.test_taps_equal_hooks_written_by_hand_on_the_library_model
    test_noop = AnyModel.test_tapping_everything_leaves_the_embedding_as_it_was
    test_sums = TransformerBlocks.test_branches_add_up_to_the_residual
    test_heads = TransformerBlocks.test_head_results_and_the_bias_give_the_attention_output
    all_blocks = TransformerBlocks.all_blocks

    def test_every_site_of_three_blocks_equals_hooks_and_formulas(self, subject: Subject) -> None:
        root, blocks = subject.model.module, (0, 6, 11)
        expected = oracles.coca_vit(root, oracles.watch(root, subject.images, encode), blocks)
        oracles.assert_every_site(subject.model, subject.images, expected, blocks)
