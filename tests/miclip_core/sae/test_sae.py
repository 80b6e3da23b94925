"""What an SAE computes, against dense formulas; what its kinds promise; what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from miclip_core.sae import sae as module
from miclip_core.sae.codes import Codes
from miclip_core.sae.sae import Sae
from miclip_core.sae.weights import load_sae, save_sae
from schemas.errors import BadSae, BadTokens, ThresholdUnset
from schemas.sae import ARCHS, SaeConfig

D, M, K = 8, 24, 5


def make(arch: str, seed: int = 0, **config) -> Sae:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    config = {"arch": arch, "d": D, "latents": M, "k": K, **config}
    threshold = normal(M).abs() if arch == "jumprelu" else torch.full((M,), 0.4)
    gate = {name: normal(M) for name in ("b_gate", "b_mag", "r_mag")} if arch == "gated" else {}
    W_dec = torch.nn.functional.normalize(normal(M, D), dim=1)
    b_enc = torch.zeros(M) if arch == "gated" else normal(M)
    wants = arch in ("jumprelu", "batchtopk", "matryoshka")
    return Sae(SaeConfig(**config), normal(M, D), b_enc, W_dec, normal(D), threshold if wants else None, gate)


def by_formula(sae: Sae, x: Tensor) -> Tensor:
    p = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    match sae.config.arch:
        case "relu":
            return p.relu()
        case "gated":
            return (p + sae.gate["b_gate"] > 0) * (p * sae.gate["r_mag"].exp() + sae.gate["b_mag"]).relu()
        case "topk":
            return p.relu() * (p >= p.sort(dim=1, descending=True).values[:, K - 1 : K])
        case _:
            return p.relu() * (p > sae.threshold)


X = torch.randn(50, D, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("arch", ARCHS)
def test_codes_and_reconstructions_follow_the_formulas(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DENSE_CELLS", 7 * M)  # slices of 7 tokens
    monkeypatch.setattr(module, "_ROWS", 7)
    sae = make(arch)
    codes, x_hat = sae.reconstruct(X)
    f = by_formula(sae, X)
    torch.testing.assert_close(codes.dense(), f)
    torch.testing.assert_close(x_hat, f @ sae.W_dec + sae.b_dec)
    e = X - x_hat
    torch.testing.assert_close(codes.dense() @ sae.W_dec + sae.b_dec + e, X)
    assert all(row.diff().min() > 0 for row in codes.latents.split(codes.counts().tolist()) if len(row) > 1)


def test_topk_keeps_k_or_all_that_are_positive_and_nothing_larger_is_dropped() -> None:
    sae = make("topk")
    f, p = sae.encode(X).dense(), sae.pre_activations(X)
    positive = (p > 0).sum(1)
    assert (f > 0).sum(1).tolist() == positive.clamp(max=K).tolist()
    for kept, all_p in zip(f, p):
        if kept.any():
            assert float(kept[kept > 0].min()) >= float(all_p[kept == 0].max()) or int((all_p > 0).sum()) <= K


@pytest.mark.parametrize("arch", ARCHS)
def test_permuted_latents_permute_the_codes_and_permuted_tokens_the_rows(arch: str) -> None:
    sae, order = make(arch), torch.randperm(M, generator=torch.Generator().manual_seed(1))
    moved = {name: tensor if name == "b_dec" else tensor[order] for name, tensor in sae.tensors().items()}
    other = Sae.from_tensors(sae.config, moved)
    (codes, x_hat), (permuted, same) = sae.reconstruct(X), other.reconstruct(X)
    torch.testing.assert_close(permuted.dense(), codes.dense()[:, order])
    torch.testing.assert_close(same, x_hat)
    torch.testing.assert_close(sae.encode(X.flip(0)).dense(), codes.dense().flip(0))


def test_a_signed_topk_keeps_negative_values() -> None:
    sae = make("topk", post_topk_relu=False)
    sae = Sae(sae.config, sae.W_enc, sae.b_enc - 5, sae.W_dec, sae.b_dec)
    codes = sae.encode(X)
    assert codes.counts().tolist() == [K] * len(X)
    assert bool((codes.values < 0).any())


def test_groupmax_takes_the_largest_of_each_group() -> None:
    sae = make("topk", groupmax=True, k=4)
    best, where = sae.pre_activations(X).unflatten(1, (4, 6)).max(2)
    expected = torch.zeros(len(X), M).scatter(1, where + torch.arange(0, M, 6), best.relu())
    torch.testing.assert_close(sae.encode(X).dense(), expected)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_a_norm_per_token_is_undone_with_the_tokens(norm: str) -> None:
    sae = make("relu", input_norm=norm)
    plain = Sae(SaeConfig(arch="relu", d=D, latents=M), sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    if norm == "layer_norm":
        shift, scale = X.mean(1, keepdim=True), X.std(1, keepdim=True)
        expected = plain.reconstruct((X - shift) / (scale + 1e-5))[1] * scale + shift
    else:
        scale = X.norm(dim=1, keepdim=True) / D**0.5
        expected = plain.reconstruct(X / scale)[1] * scale
    torch.testing.assert_close(sae.reconstruct(X)[1], expected)
    with pytest.raises(ValueError, match="decode\\(codes, x\\)"):
        sae.decode(sae.encode(X))


@pytest.mark.parametrize("arch", ARCHS)
def test_the_file_gives_the_same_sae_and_the_same_bytes(arch: str) -> None:
    sae = make(arch, site="resid_post.1@patch", tokens=7)
    again = load_sae(save_sae(sae))
    assert again.config == sae.config
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in sae.tensors().items())
    assert save_sae(again) == save_sae(sae)


def test_files_that_are_not_ours_or_damaged_are_refused() -> None:
    from safetensors.torch import save

    good = save_sae(make("topk"))
    for data in (b"", b"x" * 50, good[:-10], save({"W_enc": torch.ones(2)})):
        with pytest.raises(BadSae, match="not an SAE file of ours"):
            load_sae(data)


def test_unusable_weights_are_refused_with_the_reason() -> None:
    sae = make("topk")

    def broken(**changes: Tensor) -> Sae:
        return Sae.from_tensors(sae.config, {**sae.tensors(), **changes})

    with pytest.raises(BadSae, match=r"W_enc has shape \(8, 24\); expected \(24, 8\)"):
        broken(W_enc=sae.W_enc.T).check()
    with pytest.raises(BadSae, match="b_enc holds NaN"):
        broken(b_enc=sae.b_enc * torch.nan).check()
    with pytest.raises(BadSae, match="1 rows of W_dec have no length"):
        broken(W_dec=sae.W_dec * (torch.arange(M) != 3)[:, None]).check()
    with pytest.raises(BadSae, match="float16"):
        broken(b_dec=sae.b_dec.half()).check()
    with pytest.raises(BadSae, match=r"missing \['W_dec'\], unknown \['decoder'\]"):
        tensors = sae.tensors()
        tensors["decoder"] = tensors.pop("W_dec")
        Sae.from_tensors(sae.config, tensors)


def test_a_threshold_that_was_never_measured_is_refused() -> None:
    sae = make("batchtopk")
    for threshold in (None, torch.full((M,), -1.0)):
        unset = Sae(sae.config, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, threshold)
        with pytest.raises(ThresholdUnset):
            unset.check()
        with pytest.raises(ThresholdUnset):
            unset.encode(X)


def test_wrong_tokens_are_refused() -> None:
    with pytest.raises(BadTokens, match=r"expected tokens \[N, d=8\], got \(3, 9\)"):
        make("topk").encode(torch.zeros(3, 9))
    x = X.clone()
    x[4, 0] = torch.nan
    with pytest.raises(BadTokens, match=r"1 of 50 tokens .* rows \[4\]"):
        make("relu").encode(x)


def test_no_tokens_give_no_codes() -> None:
    for arch in ARCHS:
        codes, x_hat = make(arch).reconstruct(torch.zeros(0, D))
        assert len(codes) == 0
        assert x_hat.shape == (0, D)


def test_codes_on_paper() -> None:
    """Token 0 fires 3 (0.5) and 1 (2), token 1 nothing, token 2 latent 0 (-1)."""
    codes = Codes.from_topk(torch.tensor([[3, 1], [2, 0], [0, 3]]), torch.tensor([[0.5, 2], [0, 0], [-1, 0]]), 4)
    assert codes.offsets.tolist() == [0, 2, 2, 3]
    assert codes.latents.tolist() == [1, 3, 0]
    assert codes.values.tolist() == [2, 0.5, -1]
    assert codes.dense().tolist() == [[0, 2, 0, 0.5], [0, 0, 0, 0], [-1, 0, 0, 0]]
    assert codes.fired().tolist() == [0, 1, 0, 1]
    assert codes.rows().tolist() == [0, 0, 2]
    twice = Codes.concat([codes, Codes.from_dense(codes.dense())])
    assert torch.equal(twice.dense(), codes.dense().repeat(2, 1))
    chosen = twice.take(torch.tensor([5, 1, 3, 3]))
    assert chosen.dense().tolist() == [[-1, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0.5], [0, 2, 0, 0.5]]
    assert chosen.offsets.tolist() == [0, 1, 1, 3, 5]
    assert codes.take(torch.tensor([1])).dense().tolist() == [[0, 0, 0, 0]] and len(codes.take(torch.arange(0))) == 0


def test_chosen_values_of_codes_on_paper() -> None:
    """Token 0 has latents 1 and 3, token 1 none, token 2 latent 0; -1 asks for nothing."""
    codes = Codes.from_dense(torch.tensor([[0, 5.0, 0, 7], [0, 0, 0, 0], [2, 0, 0, 0]]))
    asked = torch.tensor([[3, 0, 1], [-1, 1, 2], [3, 0, -1]])
    assert codes.at(asked).tolist() == [[7, 0, 5], [0, 0, 0], [0, 2, 0]]
    assert Codes.from_dense(torch.zeros(2, 4)).at(asked[:2]).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert codes.at(asked[:, :0]).shape == (3, 0)
