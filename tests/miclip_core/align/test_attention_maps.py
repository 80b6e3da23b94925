"""Attention maps of features against the model's own attention and formulas written by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from miclip_core.align.attention_maps import attention_maps, entropy, mass_inside, model_attention, points_inside
from miclip_core.sae.sae import Sae
from miclip_core.world.evaluate import held_out, pixels_of
from miclip_core.zoo.load import load_model
from miclip_core.zoo.model import VisionModel
from schemas.errors import BadUnits, UnknownSite, UnsupportedBlock
from schemas.intervene import MapActivation
from schemas.refs import ModelRef
from schemas.sae import SaeConfig
from tests.miclip_core.intervene.test_edits import make_sae

SITE = "resid_post.2@patch"
IMAGES = pixels_of(held_out(4))


@pytest.fixture(scope="module", params=["clip-p8", "vit-dense"])
def model(request: pytest.FixtureRequest) -> VisionModel:
    return load_model(ModelRef.parse(f"demo:{request.param}"))


def exact_sae(activation: str) -> Sae:
    """One that reconstructs everything: both signs of every axis of a rotation by relu, or the axes alone without it."""
    Q = torch.linalg.qr(torch.randn(96, 96, generator=torch.Generator().manual_seed(0)))[0]
    W = torch.cat([Q, -Q]) if activation == "sae" else Q
    config = SaeConfig(arch="relu", d=96, latents=len(W), k=None)
    return Sae(config, W, torch.zeros(len(W)), W, torch.randn(96, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("activation", ["linear", "sae"])
def test_all_features_of_an_sae_without_error_give_the_models_own_attention(
    model: VisionModel, activation: MapActivation
) -> None:
    """Softmax over the patches alone is the row over all tokens without the class token, renormalised."""
    sae = exact_sae(activation)
    saliency = attention_maps(model, SITE, sae, IMAGES, torch.arange(sae.config.latents).expand(4, -1), activation)
    row_BHT = model.run(IMAGES, ["pattern.3@cls"])["pattern.3@cls"]
    patches_BHP = row_BHT[..., 1:] / row_BHT[..., 1:].sum(-1, keepdim=True)
    torch.testing.assert_close(saliency, patches_BHP.mean(1).reshape(4, 8, 8), atol=1e-5, rtol=1e-4)
    assert float(saliency.amax()) > 1.5 / 64  # not uniform
    own = model_attention(model, SITE, IMAGES)
    torch.testing.assert_close(own, patches_BHP.mean(1).reshape(4, 8, 8))


@pytest.mark.parametrize("activation", ["linear", "sae"])
def test_no_feature_makes_all_patches_alike_and_the_map_uniform(model: VisionModel, activation: MapActivation) -> None:
    """All patches are b_dec then; the next block sees no position."""
    for units_BK in (torch.full((4, 2), -1), torch.empty(4, 0, dtype=torch.int64)):
        saliency = attention_maps(model, SITE, make_sae(96), IMAGES, units_BK, activation)
        torch.testing.assert_close(saliency, torch.full((4, 8, 8), 1 / 64))


@pytest.mark.parametrize("activation", ["linear", "sae"])
def test_maps_are_those_of_the_formula(activation: MapActivation) -> None:
    """Image 1 with features 3 and 7: patches from their two vectors and b_dec, LayerNorm, q . k / sqrt(X), softmax, mean."""
    model, sae = load_model(ModelRef.parse("demo:clip-p8")), make_sae(96)
    residual_TD = model.run(IMAGES, ["resid_post.2@all"])["resid_post.2@all"][1]
    a_PD = residual_TD[1:]
    z_PU = (a_PD - sae.b_dec) @ sae.W_enc.T + sae.b_enc if activation == "linear" else sae.encode(a_PD).dense()
    new_PD = z_PU[:, [3]] * sae.W_dec[3] + z_PU[:, [7]] * sae.W_dec[7] + sae.b_dec
    block = model.module.visual.transformer.resblocks[3]
    norm = block.ln_1
    x_TD = layer_norm(torch.cat([residual_TD[:1], new_PD]), (96,), norm.weight, norm.bias, norm.eps)
    qkv_TD = x_TD @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    q, k, _ = qkv_TD.unflatten(-1, (3, block.attn.num_heads, -1)).unbind(1)
    scores = torch.stack([k[1:, h] @ q[0, h] for h in range(block.attn.num_heads)]) / q.shape[-1] ** 0.5
    expected = scores.softmax(1).mean(0).reshape(8, 8)
    units_BK = torch.tensor([[1, 2], [7, 3], [-1, -1], [5, -1]])
    saliency = attention_maps(model, SITE, sae, IMAGES, units_BK, activation)
    torch.testing.assert_close(saliency[1], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(saliency.sum((1, 2)), torch.ones(4))
    own = attention_maps(model, SITE, sae, IMAGES, torch.tensor([[3, 7]] * 4), activation)
    torch.testing.assert_close(own[1], saliency[1])  # neither the order of features nor other images matter
    assert float((own[0] - saliency[0]).abs().max()) > 1e-4


@pytest.mark.parametrize("activation", ["linear", "sae"])
def test_the_order_of_heads_does_not_matter_but_which_query_meets_which_key_does(activation: MapActivation) -> None:
    sae, units_BK = make_sae(96), torch.tensor([[3, 7]] * 4)

    def saliency(*moved: int) -> Tensor:
        """With the heads of the queries (0), keys (1) and values (2) that are moved on by one place."""
        model = load_model(ModelRef.parse("demo:clip-p8"))
        attn = model.module.visual.transformer.resblocks[3].attn
        with torch.no_grad():
            for parameter in (attn.in_proj_weight, attn.in_proj_bias):
                heads = parameter.unflatten(0, (3, attn.num_heads, -1))
                for which in moved:
                    heads[which] = heads[which].roll(1, 0)
        return attention_maps(model, SITE, sae, IMAGES, units_BK, activation)

    expected = saliency()
    torch.testing.assert_close(saliency(0, 1, 2), expected, atol=1e-6, rtol=1e-5)
    assert float((saliency(0) - expected).abs().max()) > 1e-4


def test_entropy_and_hits_on_paper() -> None:
    saliency = torch.tensor([[[0.5, 0.5], [0.0, 0.0]], [[0.25, 0.25], [0.25, 0.25]], [[0.1, 0.2], [0.3, 0.4]]])
    assert entropy(saliency).tolist() == pytest.approx([math.log(2), math.log(4), 1.2798542], abs=1e-6)
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, :4, :2] = True  # the left half of patch (0, 0); its centre is just right of it
    masks[1] = True
    masks[2, 4:, 4:] = True
    assert mass_inside(saliency, masks).tolist() == pytest.approx([0.25, 1, 0.4])
    assert points_inside(saliency, masks).tolist() == [False, True, True]


def units(*numbers: int) -> Tensor:
    return torch.tensor([numbers] * 4)


def test_models_and_sites_without_such_a_map_are_refused() -> None:
    clip, resnet = (load_model(ModelRef.parse(f"demo:{name}")) for name in ("clip-p8", "resnet-sup"))
    for site in ("resid_post.4@patch", "resid_post.2@cls", "mlp_out.2@patch"):
        with pytest.raises(UnknownSite, match="with l from 0 to 3"):
            attention_maps(clip, site, make_sae(96), IMAGES, units(0))
    with pytest.raises(UnsupportedBlock, match="no class token"):
        attention_maps(resnet, "stage.3", make_sae(resnet.facts.site("stage.3").width), IMAGES, units(0))
    with pytest.raises(BadUnits, match="unit 40"):
        attention_maps(clip, SITE, make_sae(96), IMAGES, units(40))
