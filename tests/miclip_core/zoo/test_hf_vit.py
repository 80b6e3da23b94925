"""The transformers library's vision transformers under the contract: every class tiny in float64, each type at real size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miclip_core.zoo.hf import Blueprint, transformers
from miclip_core.zoo.load import find_family, inspect_model, load_model
from miclip_core.zoo.model import VisionModel
from schemas.errors import TokenOrderUnknown, UnknownSite, UnsupportedBlock
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
from tests.miclip_core.zoo.oracles import CLIP, DINOV2, INTERNVL, SIGLIP, VIT, Names

Look = Callable[[nn.Module, Tensor, Forward], Tensor]

SIZE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 12,
    "patch_size": 4,
    "layer_norm_eps": 1e-6,  # with the 1e-12 of ViT, halving the last residual changes nothing that fp64 can see
}
DINO = {key: value for key, value in SIZE.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
TEXT = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 64,
    "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


def without_prefix(names: Names, tower: str = "") -> Names:
    return Names(**{**vars(names), "tower": tower})


@dataclass(frozen=True)
class Variant:
    """One class of the library, how it is configured, and how its user gets the image embedding."""

    kind: str
    config: Callable[[], Any]
    names: Names
    embed: Callable[[Any, Tensor], Tensor]
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        return Blueprint(self.kind, getattr(transformers, self.kind), self.config(), arguments=self.arguments).build()


def arange(images: Tensor, patches: int) -> Tensor:
    return torch.arange(patches, dtype=torch.float32).expand(len(images), patches)


def cls_token(root: Any, images: Tensor) -> Tensor:
    return root(pixel_values=images).last_hidden_state[:, 0]


def pooler(root: Any, images: Tensor) -> Tensor:
    return root(pixel_values=images).pooler_output


def image_features(root: Any, images: Tensor) -> Tensor:
    return root.get_image_features(pixel_values=images).pooler_output


def all_tokens(root: Any, images: Tensor) -> Tensor:
    return root(pixel_values=images).last_hidden_state


def dinov2_features(root: Any, images: Tensor) -> Tensor:
    tokens = root.dinov2(pixel_values=images).last_hidden_state
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)


def clip_config() -> Any:
    return transformers.CLIPConfig(text_config=TEXT, vision_config=SIZE, projection_dim=6)


def siglip_config() -> Any:
    text = {**TEXT, "projection_size": 16}
    return transformers.SiglipConfig(text_config=text, vision_config=SIZE)


VARIANTS: dict[str, Variant] = {
    "CLIP": Variant("CLIPModel", clip_config, CLIP, image_features),
    "CLIP vision": Variant(
        "CLIPVisionModel", lambda: transformers.CLIPVisionConfig(**SIZE), without_prefix(CLIP), pooler
    ),
    "CLIP vision with projection": Variant(
        "CLIPVisionModelWithProjection",
        lambda: transformers.CLIPVisionConfig(**SIZE, projection_dim=6, hidden_act="gelu"),
        CLIP,
        lambda root, images: root(pixel_values=images).image_embeds,
    ),
    "SigLIP": Variant("SiglipModel", siglip_config, SIGLIP, image_features),
    "SigLIP vision": Variant(
        "SiglipVisionModel", lambda: transformers.SiglipVisionConfig(**SIZE), without_prefix(SIGLIP), pooler
    ),
    "SigLIP without head": Variant(
        "SiglipVisionModel",
        lambda: transformers.SiglipVisionConfig(**SIZE, vision_use_head=False),
        without_prefix(SIGLIP),
        all_tokens,
    ),
    "InternVL": Variant(
        "InternVLVisionModel",
        lambda: transformers.InternVLVisionConfig(**SIZE, attention_bias=True),
        INTERNVL,
        all_tokens,
    ),
    "ViT with pooler": Variant("ViTModel", lambda: transformers.ViTConfig(**SIZE), VIT, pooler),
    "ViT, oblong, no pooler, no biases": Variant(
        "ViTModel",
        lambda: transformers.ViTConfig(**{**SIZE, "image_size": [12, 8]}, qkv_bias=False),
        VIT,
        cls_token,
        {"add_pooling_layer": False},
    ),
    "ViT classifier": Variant(
        "ViTForImageClassification",
        lambda: transformers.ViTConfig(**SIZE, id2label={0: "cat", 1: "dog", 2: "owl"}),
        without_prefix(VIT, "vit."),
        lambda root, images: cls_token(root.vit, images),
    ),
    "MAE": Variant(
        "ViTMAEModel",
        lambda: transformers.ViTMAEConfig(**SIZE),
        VIT,
        lambda root, images: root(pixel_values=images, noise=arange(images, 9)).last_hidden_state[:, 0],
    ),
    "DINOv2": Variant("Dinov2Model", lambda: transformers.Dinov2Config(**DINO), DINOV2, pooler),
    "DINOv2 with SwiGLU": Variant(
        "Dinov2Model",
        lambda: transformers.Dinov2Config(**DINO, use_swiglu_ffn=True),
        Names(**{**vars(DINOV2), "mlp": ("gate_proj", "down_proj")}),
        pooler,
    ),
    "DINOv2 with registers": Variant(
        "Dinov2WithRegistersModel",
        lambda: transformers.Dinov2WithRegistersConfig(**DINO, num_register_tokens=3),
        DINOV2,
        pooler,
    ),
    "DINOv2 classifier": Variant(
        "Dinov2ForImageClassification",
        lambda: transformers.Dinov2Config(**DINO, id2label={0: "cat", 1: "dog", 2: "owl"}),
        without_prefix(DINOV2, "dinov2."),
        dinov2_features,
    ),
}
# Classes that share all of their code with another variant.
SLOW = (
    "SigLIP without head",
    "CLIP vision",
    "CLIP vision with projection",
    "SigLIP vision",
    "DINOv2",
    "DINOv2 classifier",
)


# ---------------------------------------------------------------- oracles by hand


def by_head(look: Look, heads: int) -> Look:
    """[B, T, H * X] of a projection as [B, H, T, X]."""
    return lambda *args: look(*args).unflatten(-1, (heads, -1)).transpose(1, 2)


def handwritten(names: Names, layer: int, heads: int) -> Handwritten:
    """Plain hooks on the module paths of one block, and the softmax of what its projections return."""
    block = f"{names.tower}{names.block}.{layer}"
    attention = f"{block}.{names.attention}"
    q, k = (by_head(hooked_output(f"{attention}.{name}_proj"), heads) for name in "qk")

    def pattern(*args: Any) -> Tensor:
        queries, keys = q(*args), k(*args)
        return torch.softmax(queries @ keys.mT / queries.shape[-1] ** 0.5, -1)

    def z(*args: Any) -> Tensor:
        return hooked_input(f"{attention}.{names.output}")(*args).unflatten(-1, (heads, -1))

    def branch(which: int) -> Look:
        look = hooked_output(f"{block}.{(names.branches or (names.attention, 'mlp'))[which]}")
        if names.scales is None:
            return look
        scale = f"{block}.{names.scales[which]}"
        return lambda root, *rest: root.get_parameter(scale) * look(root, *rest)

    final = (
        {}
        if names.final is None
        else {
            "lnf_in": hooked_input(f"{names.tower}{names.final}"),
            "lnf_out": hooked_output(f"{names.tower}{names.final}"),
        }
    )
    return {
        "embed": hooked_input(f"{names.tower}{names.first_norm}")
        if names.first_norm
        else hooked_input(f"{names.tower}{names.block}.0"),
        "resid_pre.0": hooked_input(f"{names.tower}{names.block}.0"),
        f"resid_pre.{layer}": hooked_input(block),
        f"resid_mid.{layer}": hooked_input(f"{block}.{names.norms[1]}"),
        f"resid_post.{layer}": hooked_output(block),
        f"ln1_out.{layer}": hooked_output(f"{block}.{names.norms[0]}"),
        f"ln2_out.{layer}": hooked_output(f"{block}.{names.norms[1]}"),
        f"q.{layer}": q,
        f"k.{layer}": k,
        f"v.{layer}": by_head(hooked_output(f"{attention}.v_proj"), heads),
        f"pattern.{layer}": pattern,
        f"z.{layer}": z,
        f"attn_out.{layer}": branch(0),
        f"mlp_pre.{layer}": hooked_output(f"{block}.mlp.{names.mlp[0]}"),
        f"mlp_act.{layer}": hooked_input(f"{block}.mlp.{names.mlp[1]}"),
        f"mlp_out.{layer}": branch(1),
        **final,
    }


@contextmanager
def eager(root: Any) -> Iterator[None]:
    """The library's own attention in plain arithmetic, which returns its weights."""
    root.set_attn_implementation("eager")
    try:
        yield
    finally:
        root.set_attn_implementation("sdpa")


def library_pattern(attention: str) -> Look:
    """Attention weights as the library returns them."""

    def look(root: Any, images: Tensor, forward: Forward) -> Tensor:
        seen: list[Tensor] = []
        handle = root.get_submodule(attention).register_forward_hook(lambda m, args, output: seen.append(output[1]))
        with eager(root), torch.no_grad():
            forward(root, images)
        handle.remove()
        return seen[0]

    return look


class HfViT:
    """What this family narrows or adds to the contract."""

    def activation_module(self, model: VisionModel) -> nn.Module | None:
        if model.facts.act_kind == "silu_gate":
            return None
        return next(module.activation_fn for module in model.module.modules() if hasattr(module, "activation_fn"))

    def test_the_embedding_is_bit_for_bit_what_the_library_returns(self, subject: Subject) -> None:
        with torch.no_grad():
            ours = subject.model.run(subject.images, [subject.output])[subject.output]
            assert torch.equal(ours, subject.forward(subject.model.module, subject.images))

    def test_hidden_states_of_the_library_are_the_residuals(self, subject: Subject) -> None:
        root: Any = subject.model.module
        blocks = range(subject.model.facts.n_blocks)
        out = subject.model.run(subject.images, ["resid_pre.0@all", *(f"resid_post.{layer}@all" for layer in blocks)])
        tower = getattr(root.base_model, "vision_model", root.base_model)
        masks, (rows, columns) = hasattr(tower.embeddings, "random_masking"), subject.model.facts.grid
        noise = {"noise": arange(subject.images, rows * columns)} if masks else {}
        with torch.no_grad():
            seen = tower(pixel_values=subject.images, output_hidden_states=True, **noise).hidden_states
        for (name, ours), theirs in zip(out.items(), seen, strict=True):
            assert subject.close(ours, theirs), name


class TestTiny(HfViT, AnyModel, TransformerBlocks):
    @pytest.fixture(
        scope="class",
        params=[name if name not in SLOW else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS],
    )
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        torch.manual_seed(1)
        variant = VARIANTS[request.param]
        model = tiny_model(variant.build)
        images = torch.randn(3, 3, *model.facts.input_hw, dtype=torch.float64)
        return Subject(model, images, variant.embed, handwritten(variant.names, 1, 2))

    def test_the_readout_rebuilds_the_embedding(self, subject: Subject) -> None:
        if subject.model.family.readout is None:
            with pytest.raises(UnsupportedBlock, match="no linear readout"):
                subject.model.readout()
            return
        super().test_the_readout_rebuilds_the_embedding(subject)

    def test_the_effective_row_carries_values_to_the_pooled_vector(self, subject: Subject) -> None:
        if subject.model.family.readout is not None:
            super().test_the_effective_row_carries_values_to_the_pooled_vector(subject)

    def test_patterns_are_those_of_the_librarys_own_arithmetic(self, subject: Subject) -> None:
        (attention,) = [
            name
            for name, _ in subject.model.module.named_modules()
            if name.endswith(("1.self_attn", "1.attention")) and "text" not in name
        ]
        expected = library_pattern(attention)(subject.model.module, subject.images, subject.forward)
        pattern = subject.model.run(subject.images, ["pattern.1@all"])["pattern.1@all"]
        assert torch.allclose(pattern, expected.double(), atol=1e-6)  # some classes take the softmax in fp32

    def test_the_pooling_head_is_an_exact_sum_over_heads_and_tokens(self, subject: Subject) -> None:
        if subject.model.facts.pool != "map":
            with pytest.raises(UnknownSite):
                subject.model.sites(["pool_pattern"])
            return
        root: Any = subject.model.module
        head = getattr(root, "vision_model", root).head
        out = subject.model.run(
            subject.images, ["pool_pattern", "pool_v", "pool_out", "map_mlp", "pooled", "embedding"]
        )
        z = torch.einsum("bht,bhtx->bhx", out["pool_pattern@all"], out["pool_v@all"])
        u = z.flatten(1) @ head.attention.out_proj.weight.T + head.attention.out_proj.bias
        assert subject.close(out["pool_pattern@all"].sum(-1), torch.ones_like(z[..., 0]))
        assert subject.close(u, out["pool_out"])
        assert subject.close(head.mlp(head.layernorm(u)), out["map_mlp"])
        assert subject.close(u + out["map_mlp"], out["embedding"])
        assert torch.equal(out["pooled"], out["embedding"])

    def test_heads_without_a_class_token_refuse_its_selector(self, subject: Subject) -> None:
        if not subject.model.facts.has_cls:
            with pytest.raises(UnknownSite, match="has no cls"):
                subject.model.sites(["resid_post.0@cls"])
        assert ("reg" in subject.model.facts.site("embed").selectors) == (subject.model.facts.n_prefix > 1)

    def test_logits_are_the_classifiers_and_classes_its_names(self, subject: Subject) -> None:
        model, root = subject.model, subject.model.module
        if not hasattr(root, "classifier"):
            assert model.facts.classes is None
            return
        with torch.no_grad():
            assert torch.equal(model.logits(subject.images), root(pixel_values=subject.images).logits)
        assert model.facts.classes == ("cat", "dog", "owl")
        assert model.facts.embed_dim == root.classifier.in_features


# ---------------------------------------------------------------- masked autoencoders


def test_a_masked_autoencoder_that_drops_patches_has_no_sites() -> None:
    variant = VARIANTS["MAE"]
    built = variant.build()
    built.root.config.mask_ratio = 0.75
    with pytest.raises(TokenOrderUnknown, match="drops 75% of the patches"):
        find_family("mae", built)


def test_a_masked_autoencoder_that_begins_to_drop_patches_is_noticed() -> None:
    model = tiny_model(VARIANTS["MAE"].build)
    model.module.config.mask_ratio = 0.5  # type: ignore[union-attr]
    with pytest.raises(TokenOrderUnknown, match="drops 50%"):
        model.embed_images(torch.zeros(1, 3, 12, 12, dtype=torch.float64))


def test_a_masked_autoencoder_for_pretraining_is_read_through_its_encoder() -> None:
    config = transformers.ViTMAEConfig(
        **SIZE, decoder_num_hidden_layers=1, decoder_hidden_size=8, decoder_num_attention_heads=2
    )
    model = tiny_model(Blueprint("mae", transformers.ViTMAEForPreTraining, config).build)
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    ran: list[int] = []
    root: Any = model.module
    root.decoder.register_forward_hook(lambda *a: ran.append(1))
    with torch.no_grad():
        expected = root.vit(pixel_values=images, noise=arange(images, 9)).last_hidden_state
    assert torch.equal(model.run(images, ["lnf_out@all"])["lnf_out@all"], expected) and not ran


@pytest.mark.parametrize("name", ["SigLIP without head", "InternVL"])
def test_a_tower_that_pools_nothing_has_tokens_and_no_embedding(name: str) -> None:
    model = tiny_model(VARIANTS[name].build)
    assert model.facts.pool == "none" and model.facts.embed_dim is None and model.family.readout is None
    with pytest.raises(UnknownSite, match="has no site embedding"):
        model.embed_images(torch.zeros(1, 3, 12, 12, dtype=torch.float64))
    with pytest.raises(UnknownSite, match="pools nothing"):
        model.facts.check_embeds()


def test_internvls_large_tower_norms_queries_and_keys_over_all_heads() -> None:
    config = transformers.InternVLVisionConfig(**SIZE, norm_type="rms_norm", use_qk_norm=True, use_mean_pooling=False)
    build = Blueprint("large", transformers.InternVLVisionModel, config).build
    model = tiny_model(build, torch.float32)  # its norms compute in fp32 whatever comes in
    subject = Subject(model, torch.randn(2, 3, 12, 12), all_tokens, {}, 1e-5)
    sums = TransformerBlocks()
    sums.test_branches_add_up_to_the_residual(subject)
    sums.test_norm_statistics_rebuild_the_norms(subject)
    sums.test_head_results_and_the_bias_give_the_attention_output(subject)
    expected = library_pattern("encoder.layer.1.attention")(model.module, subject.images, all_tokens)
    pattern = model.run(subject.images, ["pattern.1@all"])["pattern.1@all"]
    assert torch.allclose(pattern, expected, atol=1e-6)
    assert model.facts.pool == "tok" and model.facts.final_norm_position == "before_pool"


# ---------------------------------------------------------------- real size

REAL = {
    "clip": VARIANTS["CLIP"],
    "siglip": VARIANTS["SigLIP"],
    "vit": VARIANTS["ViT with pooler"],
    "vit_mae": Variant(
        "ViTMAEModel",
        lambda: transformers.ViTMAEConfig(),
        VIT,
        lambda root, images: root(pixel_values=images, noise=arange(images, 196)).last_hidden_state[:, 0],
    ),
    "dinov2": VARIANTS["DINOv2"],
    "dinov2_with_registers": VARIANTS["DINOv2 with registers"],
}
FAST = ("clip",)
REAL_ORACLES = ("embed", "q", "z", "attn_out", "resid_mid", "mlp_act", "mlp_out", "lnf_out")  # a forward each
# n_blocks, n_heads, head_dim, width, mlp_width, embed_dim, n_prefix, grid, act_kind, norm_eps, parameters
FACTS = {
    "clip": (12, 12, 64, 768, 3072, 512, 1, (7, 7), "quick_gelu", 1e-5, 151_277_313),
    "siglip": (12, 12, 64, 768, 3072, 768, 0, (14, 14), "gelu_tanh", 1e-6, 203_155_970),
    "vit": (12, 12, 64, 768, 3072, 768, 1, (14, 14), "gelu", 1e-12, 86_389_248),
    "vit_mae": (12, 12, 64, 768, 3072, 768, 1, (14, 14), "gelu", 1e-12, 85_798_656),
    "dinov2": (12, 12, 64, 768, 3072, 768, 1, (16, 16), "gelu", 1e-6, 85_725_696),
    "dinov2_with_registers": (12, 12, 64, 768, 3072, 768, 5, (14, 14), "gelu", 1e-6, 85_820_928),
}


def kind_of(subject: Subject) -> str:
    root: Any = subject.model.module
    return root.config.model_type


class TestRealSize(HfViT):
    """The library's default configuration of each type with random weights: hooks by hand to 1e-5, sums, facts."""

    @pytest.fixture(
        scope="class", params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in REAL]
    )
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        torch.manual_seed(1)
        model = load_model(ModelRef.parse(f"hf:{request.param}/random(0)"))
        names = REAL[request.param].names
        oracles = {
            path: look
            for path, look in handwritten(names, 11, model.facts.n_heads or 0).items()
            if path.split(".")[0] in REAL_ORACLES
        }
        oracles["pattern.11"] = library_pattern(f"{names.tower}{names.block}.11.{names.attention}")
        return Subject(model, torch.randn(1, 3, *model.facts.input_hw), REAL[request.param].embed, oracles, 1e-5)

    test_taps = AnyModel.test_taps_equal_hooks_written_by_hand_on_the_library_model
    test_noop = AnyModel.test_tapping_everything_leaves_the_embedding_as_it_was
    test_shapes = AnyModel.test_every_declared_site_has_the_declared_shape
    test_places = AnyModel.test_one_bright_patch_changes_exactly_that_place
    test_activation = AnyModel.test_the_activation_function_is_what_the_facts_say
    test_sums = TransformerBlocks.test_branches_add_up_to_the_residual
    test_mlp = TransformerBlocks.test_neurons_and_the_output_matrix_give_the_mlp_output
    all_blocks = TransformerBlocks.all_blocks

    def test_every_site_of_three_blocks_equals_hooks_and_formulas(self, subject: Subject) -> None:
        root, names = subject.model.module, REAL[kind_of(subject)].names
        seen = oracles.watch(root, subject.images, subject.forward)
        blocks, heads = (0, 6, subject.model.facts.n_blocks - 1), subject.model.facts.n_heads or 0
        oracles.assert_every_site(
            subject.model, subject.images, oracles.hf_vit(root, seen, names, heads, blocks), blocks
        )

    def test_facts_are_those_of_the_published_architecture(self, subject: Subject) -> None:
        facts = subject.model.facts
        assert FACTS[kind_of(subject)] == (
            facts.n_blocks, facts.n_heads, facts.head_dim, facts.width, facts.mlp_width, facts.embed_dim,
            facts.n_prefix, facts.grid, facts.act_kind, facts.norm_eps, facts.params,
        )  # fmt: skip


@pytest.mark.slow
def test_facts_of_internvls_tower_are_those_of_the_published_architecture() -> None:
    """On the meta device: 24 blocks of 1025 tokens take minutes. The library's words at its widths are in test_vlm.py."""
    facts = inspect_model(ModelRef.parse("hf:internvl_vision/random(0)"))
    assert (facts.n_blocks, facts.n_heads, facts.head_dim, facts.width, facts.mlp_width) == (24, 16, 64, 1024, 4096)
    assert (facts.n_prefix, facts.grid, facts.norm_eps, facts.params) == (1, (32, 32), 1e-6, 303_938_560)


@pytest.mark.slow
def test_dinov2_giant_has_gated_neurons_at_real_size() -> None:
    config = transformers.Dinov2Config(
        hidden_size=1536, num_hidden_layers=1, num_attention_heads=24, use_swiglu_ffn=True, image_size=224
    )
    model = tiny_model(Blueprint("giant", transformers.Dinov2Model, config).build, torch.float32)
    assert (model.facts.mlp_width, model.facts.act_kind) == (4096, "silu_gate")
    out, w = model.run(torch.randn(1, 3, 224, 224), ["mlp_act.0@all", "mlp_out.0@all"]), model.weights(0)
    assert torch.allclose((out["mlp_act.0@all"] @ w.W_out.T + w.b_out) * w.ls2, out["mlp_out.0@all"], atol=1e-5)
