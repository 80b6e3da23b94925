"""timm's vision transformers under the contract: each variant tiny in float64, real sizes once, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miclip_core.zoo.edits import Edit
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from miclip_core.zoo.recipe import Built
from miclip_core.zoo.timm_models import geometry_of
from miclip_core.zoo.timm_vit import describe
from schemas.errors import TokenOrderUnknown, UnknownSite, UnsupportedBlock
from schemas.models import SiteFacts, selected_range
from schemas.refs import ModelRef, Site
from tests.miclip_core.zoo import oracles
from tests.miclip_core.zoo.contract import (
    AnyModel,
    Forward,
    Handwritten,
    Subject,
    TransformerBlocks,
    hooked,
    hooked_input,
    hooked_output,
    tiny_model,
)

from timm.layers import Attention, RmsNorm, SwiGLU, SwiGLUPacked  # isort: skip - after the library is importable
from timm.models.eva import Eva  # isort: skip
from timm.models.vision_transformer import VisionTransformer  # isort: skip

SIZE: dict[str, Any] = {"img_size": (12, 8), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
VIT = partial(VisionTransformer, **SIZE, mlp_ratio=2.0)
EVA = partial(Eva, **SIZE, mlp_ratio=2.0)
VARIANTS: dict[str, Callable[..., nn.Module]] = {
    "class token, classifier": partial(VIT, num_classes=5),
    "registers, layer scale, any size": partial(
        VIT, num_classes=0, reg_tokens=2, no_embed_class=True, init_values=0.1, dynamic_img_size=True
    ),
    "mean, norm after it, registers alone": partial(
        VIT, num_classes=5, global_pool="avg", class_token=False, reg_tokens=2
    ),
    "rms norms, split gate, no biases": partial(
        VIT, num_classes=0, global_pool="avg", fc_norm=False, norm_layer=RmsNorm, mlp_layer=SwiGLU, qk_norm=True,
        qkv_bias=False, proj_bias=False,
    ),
    "packed gate, norms inside": partial(
        VIT, num_classes=0, mlp_layer=SwiGLUPacked, scale_mlp_norm=True, scale_attn_norm=True
    ),
    "query pool without the class token": partial(VIT, num_classes=0, global_pool="map"),
    "eva02": partial(
        EVA, num_classes=0, global_pool="token", qkv_fused=False, swiglu_mlp=True, scale_mlp=True,
        scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(2, 2),
    ),
    "eva, fused, mixed rotary": partial(
        EVA, num_classes=5, init_values=0.1, use_rot_pos_emb=True, rope_type="mixed", use_abs_pos_emb=False
    ),
    "perception encoder, shared keys": partial(
        EVA, num_classes=0, global_pool="map", attn_type="rope", use_rot_pos_emb=True, qkv_fused=False,
        num_kv_heads=1, use_pre_transformer_norm=True, use_fc_norm=False, attn_pool_num_heads=2,
    ),
    "dinov3": partial(
        EVA, num_classes=0, num_reg_tokens=2, use_rot_pos_emb=True, rope_type="dinov3", rope_rotate_half=True,
        use_abs_pos_emb=False, init_values=0.1, use_fc_norm=False, swiglu_mlp=True, dynamic_img_size=True,
    ),
}  # fmt: skip
FULL = [
    "mean, norm after it, registers alone",
    "query pool without the class token",
    "eva02",
    "dinov3",
]
POST_NORM = partial(EVA, num_classes=0, global_pool="token", use_post_norm=True, qkv_fused=False)


def features(root: Any, images: Tensor) -> Tensor:
    """What a classifier reads, or what a model without one returns."""
    seen: list[Tensor] = []
    with root.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone())):
        root(images)
    return seen[0]


def tower_features(root: Any, images: Tensor) -> Tensor:
    return root.encode_image(images)


def built(make: Callable[..., nn.Module]) -> Built:
    root = make().eval()
    return Built(root=root, visual=root, geometry=geometry_of({"input_size": (3, 12, 8), "crop_pct": 1.0}))


def tiny(make: Callable[..., nn.Module]) -> VisionModel:
    return tiny_model(partial(built, make))


def tiny_subject(make: Callable[..., nn.Module]) -> Subject:
    torch.manual_seed(1)
    model = tiny(make)
    return Subject(model, torch.randn(2, 3, 12, 8, dtype=torch.float64), features, handwritten(model.module))


def unfused(look: Callable[[Any, Tensor, Forward], Tensor]) -> Callable[[Any, Tensor, Forward], Tensor]:
    """Look while the library writes its patterns out instead of fusing them away."""

    def looking(root: Any, images: Tensor, forward: Forward) -> Tensor:
        parts: list[Any] = [module for module in root.modules() if hasattr(module, "fused_attn")]
        for part in parts:
            part.fused_attn = False
        try:
            return look(root, images, forward)
        finally:
            for part in parts:
                part.fused_attn = True

    return looking


def handwritten(trunk: Any, prefix: str = "") -> Handwritten:
    """Plain hooks on module paths; the attention's inner steps from the library's own unfused path."""
    last = len(trunk.blocks) - 1
    block, heads = f"{prefix}blocks.{last}", trunk.blocks[last].attn.num_heads
    per_head = lambda x: x.unflatten(-1, (heads, -1))  # noqa: E731
    found: Handwritten = {
        "embed": hooked_input(f"{prefix}norm_pre"),
        f"resid_pre.{last}": hooked_input(block),
        f"resid_post.{last}": hooked_output(block),
        f"attn_out.{last}": hooked_output(f"{block}.drop_path1"),
        f"mlp_pre.{last}": hooked_input(f"{block}.mlp.act"),
        f"mlp_act.{last}": hooked_input(f"{block}.mlp.fc2"),
        f"mlp_out.{last}": hooked_output(f"{block}.drop_path2"),
        f"pattern.{last}": unfused(hooked_output(f"{block}.attn.attn_drop")),
        f"z.{last}": lambda *args: per_head(hooked_input(f"{block}.attn.norm")(*args)),
        "pooled": hooked_input(f"{prefix}head"),
    }
    if hasattr(trunk.blocks[last], "ls1") or hasattr(trunk.blocks[last], "gamma_1"):
        found |= {
            f"ln1_out.{last}": hooked_output(f"{block}.norm1"),
            f"resid_mid.{last}": hooked_input(f"{block}.norm2"),
            f"ln2_out.{last}": hooked_output(f"{block}.norm2"),
        }
    if getattr(trunk, "rope", None) is None:
        found |= {f"{x}.{last}": hooked_output(f"{block}.attn.{x}_norm") for x in ("q", "k")}
    attn = trunk.blocks[last].attn
    if getattr(attn, "qkv", None) is not None and getattr(attn, "q_bias", None) is None:
        values = lambda *args: hooked_output(f"{block}.attn.qkv")(*args).unflatten(-1, (3, heads, -1))  # noqa: E731
        found[f"v.{last}"] = lambda *args: values(*args)[:, :, 2].transpose(1, 2)
    if trunk.global_pool == "map":
        found |= {
            "pool_in": hooked_input(f"{prefix}attn_pool"),
            "pool_pattern": partial(query_pattern, f"{prefix}attn_pool"),
            "map_mlp": lambda *args: hooked_output(f"{prefix}attn_pool.mlp")(*args)[:, 0],
        }
    return found


def query_pattern(path: str, root: Any, images: Tensor, forward: Forward) -> Tensor:
    """Attention of the pool's query, from what its two projections return."""
    pool = root.get_submodule(path)
    query = hooked(root, pool.q, images, forward)[1].unflatten(-1, (pool.num_heads, -1))  # [B, 1, H, X]
    key = hooked(root, pool.kv, images, forward)[1].unflatten(-1, (2, pool.num_heads, -1))[:, :, 0]
    scores = torch.einsum("blhx,bthx->bhlt", query, key) / key.shape[-1] ** 0.5
    return scores.softmax(-1)[:, :, 0]


class Timm:
    """What timm's transformers narrow or add."""

    def editable(self, model: VisionModel) -> list[str]:
        return [path for path in AnyModel.editable(self, model) if path != "logits"]  # type: ignore[arg-type]

    def activation_module(self, model: VisionModel) -> nn.Module | None:
        """A gate's activation is silu; the facts call the whole MLP `silu_gate`."""
        return None if model.facts.act_kind == "silu_gate" else trunk_of(model).blocks[0].mlp.act

    def plain_queries(self, model: VisionModel) -> bool:
        normed = not isinstance(trunk_of(model).blocks[0].attn.q_norm, nn.Identity)
        return not normed and getattr(trunk_of(model), "rope", None) is None

    def test_the_query_pools_heads_and_tokens_add_up_to_what_the_mlp_is_added_to(self, subject: Subject) -> None:
        if subject.model.facts.pool != "map":
            pytest.skip("no query pools this model")
        pool = trunk_of(subject.model).attn_pool
        taps = ["pool_pattern", "pool_v", "pool_out", "map_mlp", "pooled"]
        out = {key.split("@")[0]: value for key, value in subject.model.run(subject.images, taps).items()}
        W_EHX = pool.proj.weight.unflatten(1, (pool.num_heads, -1)).to(out["pool_v"])
        parts = torch.einsum("bht,bhtx,ehx->bhte", out["pool_pattern"], out["pool_v"], W_EHX)
        assert subject.close(parts.sum((1, 2)) + pool.proj.bias, out["pool_out"])
        assert subject.close(out["pool_pattern"].sum(-1), torch.ones(len(subject.images), pool.num_heads))
        by_hand = out["pool_out"] + pool.mlp(pool.norm(out["pool_out"]))
        assert subject.close(out["pool_out"] + out["map_mlp"], out["pooled"])
        assert subject.close(by_hand.to(out["pooled"]), out["pooled"])


def trunk_of(model: VisionModel) -> Any:
    visual: Any = getattr(model.module, "visual", model.module)
    return getattr(visual, "trunk", visual)


class TestTiny(Timm, AnyModel, TransformerBlocks):
    """Every sentence, for variants that between them have each kind of norm, pooling, projection and position."""

    @pytest.fixture(scope="class", params=FULL)
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        return tiny_subject(VARIANTS[request.param])

    def test_silencing_all_heads_leaves_the_bias(self, subject: Subject) -> None:
        """A norm between the heads and the output matrix leaves its shift, too."""
        if not subject.model.facts.has_inner_attn_norm:
            return TransformerBlocks.test_silencing_all_heads_leaves_the_bias(self, subject)
        attention = trunk_of(subject.model).blocks[0].attn
        left = attention.proj(attention.norm.bias) * subject.model.weights(0).ls1
        out = subject.model.run(subject.images, ["attn_out.0@all"], [Edit(Site(path="z.0"), "set", 0.0)])
        assert subject.close(out["attn_out.0@all"], left.expand_as(out["attn_out.0@all"]))


class TestOtherVariants(Timm):
    """The sentences that depend on how a block is written, for the rest."""

    @pytest.fixture(scope="class", params=[name for name in VARIANTS if name not in FULL])
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        return tiny_subject(VARIANTS[request.param])

    test_shapes = AnyModel.test_every_declared_site_has_the_declared_shape
    test_noop = AnyModel.test_tapping_everything_leaves_the_embedding_as_it_was
    test_taps = AnyModel.test_taps_equal_hooks_written_by_hand_on_the_library_model
    test_identity = AnyModel.test_setting_a_site_to_its_own_value_changes_nothing
    test_patch = AnyModel.test_one_bright_patch_changes_exactly_that_place
    test_act = AnyModel.test_the_activation_function_is_what_the_facts_say
    test_sums = TransformerBlocks.test_branches_add_up_to_the_residual
    test_heads = TransformerBlocks.test_head_results_and_the_bias_give_the_attention_output
    test_mlp = TransformerBlocks.test_neurons_and_the_output_matrix_give_the_mlp_output
    test_norms = TransformerBlocks.test_norm_statistics_rebuild_the_norms
    test_readout = TransformerBlocks.test_the_readout_rebuilds_the_embedding
    test_row = TransformerBlocks.test_the_effective_row_carries_values_to_the_pooled_vector
    test_weights = TransformerBlocks.test_weights_and_taps_agree_on_queries_keys_and_values
    test_start = TransformerBlocks.test_starting_late_equals_the_whole_pass
    run, all_blocks = TransformerBlocks.run, TransformerBlocks.all_blocks


class TestPostNorm(Timm):
    """Blocks that normalise what their branches return: taps and edits are fine, head and neuron sums are refused."""

    @pytest.fixture(scope="class")
    def subject(self) -> Subject:
        return tiny_subject(POST_NORM)

    test_shapes = AnyModel.test_every_declared_site_has_the_declared_shape
    test_noop = AnyModel.test_tapping_everything_leaves_the_embedding_as_it_was
    test_taps = AnyModel.test_taps_equal_hooks_written_by_hand_on_the_library_model
    test_identity = AnyModel.test_setting_a_site_to_its_own_value_changes_nothing
    test_gradients = AnyModel.test_gradients_equal_finite_differences
    differentiable = AnyModel.differentiable

    test_sums = TransformerBlocks.test_branches_add_up_to_the_residual
    test_patterns = TransformerBlocks.test_patterns_sum_to_one_and_mix_values_into_z
    test_start = TransformerBlocks.test_starting_late_equals_the_whole_pass
    run, all_blocks = TransformerBlocks.run, TransformerBlocks.all_blocks

    def test_heads_and_weights_are_refused_with_the_reason(self, subject: Subject) -> None:
        with pytest.raises(UnknownSite, match="has no site head_result"):
            subject.model.sites(["head_result.0"])
        with pytest.raises(UnsupportedBlock, match="normalises the outputs of its branches"):
            subject.model.weights(0)


class TestRealSize(Timm):
    """A small member of each branch of the family, random weights: hooks by hand to 1e-5, sums, exact shapes."""

    @pytest.fixture(
        scope="class",
        params=[
            "timm:vit_tiny_patch16_224",
            pytest.param("timm:eva02_tiny_patch14_224", marks=pytest.mark.slow),
            pytest.param("timm:vit_medium_patch16_reg4_gap_256", marks=pytest.mark.slow),
            pytest.param("timm:vit_small_patch16_dinov3", marks=pytest.mark.slow),
            pytest.param("open_clip:ViT-B-16-SigLIP", marks=pytest.mark.slow),
            pytest.param("open_clip:EVA02-B-16", marks=pytest.mark.slow),
            pytest.param("open_clip:PE-Core-T-16-384", marks=pytest.mark.slow),
        ],
    )
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        torch.manual_seed(1)
        model = load_model(ModelRef.parse(f"{request.param}/random(0)"))
        tower = request.param.startswith("open_clip")
        images = torch.randn(1, 3, *model.facts.input_hw)
        oracles = handwritten(trunk_of(model), "visual.trunk." if tower else "")
        return Subject(model, images, tower_features if tower else features, oracles, 1e-5)

    test_taps = AnyModel.test_taps_equal_hooks_written_by_hand_on_the_library_model
    test_noop = AnyModel.test_tapping_everything_leaves_the_embedding_as_it_was
    test_sums = TransformerBlocks.test_branches_add_up_to_the_residual
    test_heads = TransformerBlocks.test_head_results_and_the_bias_give_the_attention_output
    test_mlp = TransformerBlocks.test_neurons_and_the_output_matrix_give_the_mlp_output
    test_readout = TransformerBlocks.test_the_readout_rebuilds_the_embedding
    run, all_blocks = TransformerBlocks.run, TransformerBlocks.all_blocks


def test_every_site_of_three_blocks_at_real_size_equals_hooks_and_formulas() -> None:
    model, blocks = load_model(ModelRef.parse("timm:vit_tiny_patch16_224/random(0)")), (0, 6, 11)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = oracles.timm_vit(model.module, oracles.watch(model.module, images, features), blocks)
    oracles.assert_every_site(model, images, expected, blocks)


# ---------------------------------------------------------------- single sentences


def test_registers_without_a_class_token_start_at_the_first_position() -> None:
    model = tiny(VARIANTS["mean, norm after it, registers alone"])
    site = model.facts.site("resid_post.0")
    assert (site.prefix, site.positions, site.selectors) == (2, 8, ("all", "patch", "map", "reg"))
    images = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    out = model.run(images, ["resid_post.0@reg", "resid_post.0@all"])
    assert torch.equal(out["resid_post.0@reg"], out["resid_post.0@all"][:, :2])


def test_registers_after_a_class_token_start_at_the_second() -> None:
    facts = SiteFacts(path="x", layout="tokens", shape=(4,), positions=11, prefix=5, selectors=("all", "cls", "reg"))
    assert selected_range(facts, "reg") == (1, 5)


def test_the_inner_norm_is_split_by_head_at_its_value_in_the_forward() -> None:
    """Head h gives gamma_h (z_h - mean) / std + beta_h, with mean and std over all heads, times its output columns."""
    model = tiny(VARIANTS["eva02"])
    images = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    out = model.run(images, ["z.1@all", "head_result.1@all"])
    attention = trunk_of(model).blocks[1].attn
    flat = out["z.1@all"].flatten(2)
    mean, std = flat.mean(-1, keepdim=True), (flat.var(-1, unbiased=False, keepdim=True) + attention.norm.eps).sqrt()
    for head in (0, 1):
        cut = slice(8 * head, 8 * head + 8)
        share = attention.norm.weight[cut] * (out["z.1@all"][:, :, head] - mean) / std + attention.norm.bias[cut]
        assert torch.allclose(share @ attention.proj.weight[:, cut].T, out["head_result.1@all"][:, :, head])


def test_a_gate_computed_from_the_input_refuses_head_results_and_edits_but_not_patterns() -> None:
    def gated() -> nn.Module:
        root = VIT(num_classes=0)
        for block in root.blocks:
            block.attn = Attention(16, num_heads=2, qkv_bias=True, gated=True)
        return root

    model = tiny(gated)
    images = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    out = model.run(images, ["pattern.1@all", "z.1@all"])
    by_hand = handwritten(model.module)
    for name in ("pattern.1", "z.1"):
        assert torch.allclose(out[f"{name}@all"], by_hand[name](model.module, images, features)), name
    with pytest.raises(UnknownSite, match="has no site head_result"):
        model.sites(["head_result.1"])
    with pytest.raises(UnsupportedBlock, match=r"edit attn_out\.1"):
        model.run(images, ["embedding"], [Edit(Site(path="z.1"), "scale", 0.0)])


def test_a_tower_that_drops_patches_has_no_known_token_order() -> None:
    root = VIT(num_classes=0, patch_drop_rate=0.5)
    with pytest.raises(TokenOrderUnknown, match="drops 50% of its patches"):
        describe(root.train())
    assert describe(root.eval()).name == "timm_vit"


def test_a_norm_before_and_another_after_the_pooling_is_no_linear_readout() -> None:
    model = tiny(partial(EVA, num_classes=0, use_post_transformer_norm=True, use_fc_norm=True))
    with pytest.raises(UnsupportedBlock, match="no linear readout"):
        model.readout()


def test_the_classifier_is_asked_for_logits_and_its_input_is_the_embedding() -> None:
    model = tiny(VARIANTS["class token, classifier"])
    images = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    root: Any = model.module
    assert torch.equal(model.logits(images), root(images))
    assert torch.allclose(root.head(model.embed_images(images)), model.logits(images))
    assert model.facts.embed_dim == 16
