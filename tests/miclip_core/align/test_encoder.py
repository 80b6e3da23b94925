"""What stands for a unit and where it lands: invariances, modes of SAE latents, the file, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from miclip_core.align.encoder import NeuronEncoder, load_encoder, save_encoder
from miclip_core.sae.codes import Codes
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import save_sae
from schemas.align import AlignSettings, EncoderConfig
from schemas.errors import BadAlignment
from schemas.sae import SaeConfig

D, E, U = 7, 5, 11


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoder(bias: bool = False, standardise: bool = False, **facts: str) -> NeuronEncoder:
    config = EncoderConfig(
        settings=AlignSettings(bias=bias, standardise=standardise), d=D, dim=E, logit_scale=1.0, steps=3, **facts
    )
    mean, std = (draw(D, seed=2), draw(D, seed=3).abs() + 0.1) if standardise else (None, None)
    return NeuronEncoder(config, draw(E, D), draw(E, seed=1) if bias else None, mean, std).check()


def sae(d: int = D, **facts: object) -> Sae:
    config = SaeConfig.model_validate({"arch": "relu", "d": d, "latents": U, **facts})
    tensors = {"W_enc": draw(U, d), "W_dec": draw(U, d, seed=4), "b_enc": draw(U, seed=5), "b_dec": draw(d, seed=6)}
    return Sae.from_tensors(config, tensors).check()


CONCEPTS = draw(20, E, seed=8)


def cosines(units_UE: Tensor) -> Tensor:
    return normalize(units_UE, dim=1) @ normalize(CONCEPTS, dim=1).T


# ---------------------------------------------------------------- embeddings


def test_an_activation_is_mapped_by_hand() -> None:
    """W = [[1, 2], [0, 1]], mean (1, 0), std (2, 1), bias (10, 0): a = (3, 5) is (1, 5) standardised, then (21, 5)."""
    config = EncoderConfig(settings=AlignSettings(bias=True, standardise=True), d=2, dim=2, logit_scale=1.0, steps=1)
    made = NeuronEncoder(
        config,
        torch.tensor([[1.0, 2], [0, 1]]),
        torch.tensor([10.0, 0]),
        torch.tensor([1.0, 0]),
        torch.tensor([2.0, 1]),
    )
    a = torch.tensor([[3.0, 5]])
    assert made.embed(a).tolist() == [[21, 5]]
    assert made.embed_units(a).tolist() == [[11.5, 5]]
    assert made.embed_units().tolist() == [[0.5, 0], [2, 1]]
    assert a.tolist() == [[3, 5]]


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_all_neurons_are_embedded_as_one_hot_vectors_are(bias: bool, standardise: bool) -> None:
    made = encoder(bias, standardise)
    torch.testing.assert_close(made.embed_units(), made.embed_units(torch.eye(D)))
    assert made.config.jacobian is (bias or standardise)


@pytest.mark.parametrize("standardise", [False, True])
def test_units_are_embedded_by_how_the_map_changes_along_them(standardise: bool) -> None:
    made, v, a = encoder(True, standardise), draw(4, D, seed=9), draw(4, D, seed=10)
    torch.testing.assert_close(made.embed(a + v) - made.embed(a), made.embed_units(v), rtol=1e-4, atol=1e-5)


def test_a_stronger_activation_of_a_unit_has_the_same_cosines_and_a_negative_one_the_opposite() -> None:
    made = encoder()
    whole = cosines(made.embed(torch.eye(D)))
    torch.testing.assert_close(cosines(made.embed(3.7 * torch.eye(D))), whole)
    torch.testing.assert_close(cosines(made.embed(-0.2 * torch.eye(D))), -whole)


def test_a_rotation_of_the_activations_that_the_map_undoes_changes_no_cosine() -> None:
    made, a = encoder(), draw(30, D, seed=11)
    R = torch.linalg.qr(draw(D, D, seed=12))[0]
    turned = NeuronEncoder(made.config, made.W @ R.T)
    torch.testing.assert_close(cosines(turned.embed(a @ R.T)), cosines(made.embed(a)), rtol=1e-4, atol=1e-5)


def test_a_common_rotation_of_the_joint_space_changes_no_cosine() -> None:
    made, a = encoder(), draw(30, D, seed=11)
    R = torch.linalg.qr(draw(E, E, seed=12))[0]
    turned = NeuronEncoder(made.config, R @ made.W)
    both = normalize(turned.embed(a), dim=1) @ normalize(CONCEPTS @ R.T, dim=1).T
    torch.testing.assert_close(both, cosines(made.embed(a)), rtol=1e-4, atol=1e-5)


def test_permuted_units_have_permuted_embeddings() -> None:
    made, order = encoder(), torch.tensor([3, 0, 6, 1, 2, 5, 4])
    permuted = NeuronEncoder(made.config, made.W[:, order])
    assert torch.equal(permuted.embed_units(), made.embed_units()[order])


# ---------------------------------------------------------------- latents of an SAE


def test_the_direction_of_a_latent_is_its_decoder_row_whatever_its_length() -> None:
    made, coder = encoder(), sae()
    longer = Sae.from_tensors(coder.config, {**coder.tensors(), "W_dec": coder.W_dec * 5})
    torch.testing.assert_close(cosines(made.embed_latents(longer)), cosines(made.embed_latents(coder)))
    torch.testing.assert_close(made.embed_latents(coder), coder.W_dec @ made.W.T)


def test_a_decoded_latent_is_what_the_sae_decodes_from_it_alone() -> None:
    """Against the decoder itself, fed one latent at a time."""
    made, coder, g = encoder(standardise=True), sae(), draw(U, seed=13).abs()
    alone = made.embed_units(coder.decode(Codes.from_dense(torch.diag(g))))
    for mode in ("decoded", "decoded_mean"):
        torch.testing.assert_close(made.embed_latents(coder, mode, g), alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(made.embed_latents(coder, mode, g, slice(4, 6)), alone[4:6], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.embed_latents(coder, latents=slice(4, 6)), made.embed_latents(coder)[4:6])


def test_decoded_latents_that_are_silent_are_all_alike() -> None:
    made, coder = encoder(), sae()
    embedded = made.embed_latents(coder, "decoded", torch.zeros(U))
    assert bool((embedded == embedded[0]).all())
    torch.testing.assert_close(embedded[0], made.W @ coder.b_dec)


def test_a_latent_that_was_never_active_has_no_vector_and_spoils_no_other() -> None:
    g = torch.ones(U)
    g[2] = torch.nan
    embedded = encoder().embed_latents(sae(), "decoded_mean", g)
    assert embedded.isnan().all(1).nonzero().flatten().tolist() == [2]


def test_a_strong_latent_outweighs_the_bias_of_the_decoder() -> None:
    made, coder = encoder(), sae()
    strong = made.embed_latents(coder, "decoded_mean", torch.full((U,), 1e5))
    assert float(cosine_similarity(strong, made.embed_latents(coder)).min()) > 0.9999


# ---------------------------------------------------------------- its file


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_file_gives_back_the_encoder_bit_for_bit(bias: bool, standardise: bool) -> None:
    made = encoder(bias, standardise, model="demo:clip-p8", site="resid_post.10@cls", clip="demo:clip-p8", pool="cls")
    data = save_encoder(made)
    found = load_encoder(data)
    assert found.config == made.config
    assert found.tensors().keys() == made.tensors().keys()
    assert all(torch.equal(found.tensors()[name], tensor) for name, tensor in made.tensors().items())
    assert save_encoder(found) == data


def test_bytes_that_are_no_encoder_are_refused() -> None:
    for data in (b"", b"not safetensors", save_encoder(encoder())[:-1], save_sae(sae())):
        with pytest.raises(BadAlignment, match="not a neuron encoder of ours"):
            load_encoder(data)


# ---------------------------------------------------------------- what is refused


def test_activations_and_units_of_another_width_are_refused() -> None:
    for call in (encoder().embed, encoder().embed_units):
        with pytest.raises(BadAlignment, match=r"\[N, 7\], got \(2, 8\)"):
            call(torch.ones(2, 8))
    with pytest.raises(BadAlignment, match=r"unit vectors \[N, 7\], got \(11, 9\)"):
        encoder().embed_latents(sae(9))


def test_activations_that_are_not_finite_are_refused() -> None:
    a = torch.ones(3, D)
    a[1, 2] = torch.nan
    with pytest.raises(BadAlignment, match=r"1 of 3 activations .* rows \[1\]"):
        encoder().embed(a)


def test_an_sae_of_another_site_or_model_is_refused_and_other_positions_are_not() -> None:
    made = encoder(model="demo:clip-p8", site="resid_post.-2@cls")
    made.embed_latents(sae(model="demo:clip-p8", site="resid_post.-2@patch"))
    made.embed_latents(sae())
    for facts in (
        {"model": "demo:clip-p8", "site": "resid_post.-3@cls"},
        {"model": "demo:x", "site": "resid_post.-2@cls"},
    ):
        with pytest.raises(BadAlignment, match=r"was trained at .*demo.* give those of one model and site"):
            made.embed_latents(sae(**facts))


def test_activations_of_latents_must_fit_their_mode() -> None:
    made = encoder()
    with pytest.raises(BadAlignment, match=r"mode decoded needs one activation per latent: g \[11\], got None"):
        made.embed_latents(sae(), "decoded")
    with pytest.raises(BadAlignment, match=r"g \[11\], got \(12,\)"):
        made.embed_latents(sae(), "decoded_mean", torch.ones(12))
    with pytest.raises(BadAlignment, match="leave them out"):
        made.embed_latents(sae(), "direction", torch.ones(U))
    with pytest.raises(BadAlignment, match="input_norm layer_norm; use mode direction"):
        made.embed_latents(sae(input_norm="layer_norm"), "decoded", torch.ones(U))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("W", torch.ones(E, D + 1), "expected .*'W': \\(5, 7\\)"),
        ("W", torch.full((E, D), torch.nan), "W holds NaN"),
        ("W", torch.ones(E, D, dtype=torch.float64), "W is torch.float64; expected float32"),
        ("bias", None, "expected .*'bias': \\(5,\\)"),
        ("mean", None, "expected .*'mean': \\(7,\\)"),
        ("std", torch.zeros(D), "std holds 0.0; expected values above 0"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(name: str, tensor: Tensor | None, message: str) -> None:
    good = encoder(True, True)
    named = {**good.tensors(), name: tensor}
    with pytest.raises(BadAlignment, match=message):
        NeuronEncoder(good.config, **named).check()


def test_facts_can_be_added_and_are_checked() -> None:
    found = encoder().with_config(model="demo:clip-p8", template="a photo of a {}.")
    assert (found.config.model, found.config.template, found.config.d) == ("demo:clip-p8", "a photo of a {}.", D)
    with pytest.raises(ValueError, match="nonsense"):
        encoder().with_config(nonsense=1)
