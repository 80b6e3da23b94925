"""SAELens folders as the library writes them, written here by hand and checked against its formulas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from miclip_core.sae.foreign import load_foreign, save_foreign
from schemas.errors import BadSae, UnsupportedSae
from tests.foreign_saes import D, K, M, assert_same, random_sae, tokens, topk, write_folder

WEIGHTS = "sae_weights.safetensors"


def folder_of(tmp_path: Path, tensors: dict[str, Tensor], **settings: object) -> Path:
    cfg = {"d_in": D, "d_sae": M, "dtype": "float32", "apply_b_dec_to_input": True, "normalize_activations": "none",
           "metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2", "hook_name": "blocks.0"}, **settings}  # fmt: skip
    return write_folder(tmp_path / "sae", tensors, WEIGHTS, cfg=cfg)


def own(arch: str = "relu", dtype: torch.dtype = torch.float32, unit: bool = True) -> dict[str, Tensor]:
    """Random tensors under the library's names and in its layout: W_enc is [d, m]."""
    tensors = random_sae(arch, dtype, unit=unit).tensors()  # type: ignore[arg-type]
    if arch == "gated":
        del tensors["b_enc"]
    return {**tensors, "W_enc": tensors["W_enc"].T}


def relu(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()


def test_standard_and_without_pre_bias(tmp_path: Path) -> None:
    w, x = own(), tokens()
    assert_same(load_foreign("saelens", folder_of(tmp_path, w, architecture="standard")),
                relu(w, x), relu(w, x) @ w["W_dec"] + w["b_dec"], x)  # fmt: skip
    f = (x @ w["W_enc"] + w["b_enc"]).relu()
    free = load_foreign("saelens", folder_of(tmp_path, w, architecture="standard", apply_b_dec_to_input=False))
    assert_same(free, f, f @ w["W_dec"] + w["b_dec"], x)


def test_gated(tmp_path: Path) -> None:
    w, x = own("gated"), tokens()
    c = (x - w["b_dec"]) @ w["W_enc"]
    f = ((x - w["b_dec"]) @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu() * (c + w["b_gate"] > 0)
    sae = load_foreign("saelens", folder_of(tmp_path, w, architecture="gated"))
    assert_same(sae, f, f @ w["W_dec"] + w["b_dec"], x)


def test_jumprelu_and_negative_thresholds_pass_what_zero_passes(tmp_path: Path) -> None:
    w, x = own("jumprelu"), tokens()
    w["threshold"][::4] *= -1
    p = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    f = p.relu() * (p > w["threshold"])
    assert_same(
        load_foreign("saelens", folder_of(tmp_path, w, architecture="jumprelu")), f, f @ w["W_dec"] + w["b_dec"], x
    )


@pytest.mark.parametrize("rescale", [False, True])
def test_topk_with_and_without_decoder_norms_in_the_choice(rescale: bool, tmp_path: Path) -> None:
    w, x = own("topk", unit=False), tokens()
    length = w["W_dec"].norm(dim=1) if rescale else torch.ones(M)
    f = topk(((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * length, K)
    sae = load_foreign(
        "saelens", folder_of(tmp_path, w, architecture="topk", k=K, rescale_acts_by_decoder_norm=rescale)
    )
    assert_same(sae, f, (f / length) @ w["W_dec"] + w["b_dec"], x)
    if rescale:
        other = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).topk(K).indices
        assert not torch.equal(f.topk(K).indices.sort().values, other.sort().values)  # the flag matters here


def test_layer_norm_and_constant_norm_happen_at_run_time(tmp_path: Path) -> None:
    w, x = own(), tokens()
    mu, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    f = relu(w, (x - mu) / (std + 1e-5))
    layered = load_foreign(
        "saelens", folder_of(tmp_path, w, architecture="standard", normalize_activations="layer_norm")
    )
    assert_same(layered, f, (f @ w["W_dec"] + w["b_dec"]) * std + mu, x)
    factor = D**0.5 / x.norm(dim=1, keepdim=True)
    f = relu(w, x * factor)
    kind = "constant_norm_rescale"
    constant = load_foreign("saelens", folder_of(tmp_path, w, architecture="standard", normalize_activations=kind))
    assert_same(constant, f, (f @ w["W_dec"] + w["b_dec"]) / factor, x)


def test_a_training_factor_beside_the_weights_is_folded_in_and_one_that_is_not_there_is_asked_for(
    tmp_path: Path,
) -> None:
    w, x, c = own("topk", unit=False), tokens(), 2.5
    facts = {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}
    folder = folder_of(tmp_path, w, **facts, normalize_activations="expected_average_only_in")
    with pytest.raises(UnsupportedSae, match="fold_activation_norm_scaling_factor"):
        load_foreign("saelens", folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": c, "has_whitening": False}))
    length = w["W_dec"].norm(dim=1)
    f = topk(((c * x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * length, K)
    assert_same(load_foreign("saelens", folder), f, ((f / length) @ w["W_dec"] + w["b_dec"]) / c, x)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_training_checkpoints_fire_above_their_running_threshold(architecture: str, tmp_path: Path) -> None:
    w, x = own("relu", unit=False), tokens()
    w["topk_threshold"] = torch.tensor(1.1, dtype=torch.float64)
    length = w["W_dec"].norm(dim=1)
    p = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * length
    f = p.relu() * (p > torch.tensor(1.1))
    facts = {"k": 4.6, "rescale_acts_by_decoder_norm": True, "matryoshka_widths": [10, 25]}
    sae = load_foreign("saelens", folder_of(tmp_path, w, architecture=architecture, **facts))
    assert_same(sae, f, (f / length) @ w["W_dec"] + w["b_dec"], x)
    assert (sae.config.arch, sae.config.k) == (architecture.split("_")[0], 5)
    assert sae.config.group_sizes == ((10, 15, 15) if "matryoshka" in architecture else ())


def test_settings_of_versions_before_6_are_understood(tmp_path: Path) -> None:
    w, x = own("topk"), tokens()
    cfg = {"d_in": D, "d_sae": M, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "hook_point": "x",
           "normalize_activations": False}  # fmt: skip
    old = write_folder(tmp_path / "old", {**w, "scaling_factor": torch.ones(M)}, WEIGHTS, cfg=cfg)
    f = topk((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], K)
    assert_same(load_foreign("saelens", old), f, f @ w["W_dec"] + w["b_dec"], x)
    plain = write_folder(tmp_path / "plain", w, WEIGHTS, cfg={"d_in": D, "d_sae": M, "normalize_activations": None})
    assert_same(load_foreign("saelens", plain), relu(w, x), relu(w, x) @ w["W_dec"] + w["b_dec"], x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_short_floats_become_float32_and_long_ones_stay(dtype: torch.dtype, tmp_path: Path) -> None:
    w = {name: tensor.to(dtype) for name, tensor in own().items()}
    sae = load_foreign("saelens", folder_of(tmp_path, w, architecture="standard"))
    assert sae.W_enc.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(
    ("facts", "error", "says"),
    [
        ({"architecture": "skip_transcoder"}, UnsupportedSae, "'skip_transcoder' is not read; expected one of standard"),
        ({"architecture": "abstopk", "k": 3}, UnsupportedSae, "abstopk"),
        ({"architecture": "standard", "normalize_activations": "covariance_whitening"}, UnsupportedSae, "whitening"),
        ({"architecture": "standard", "activation_fn": "tanh-relu"}, UnsupportedSae, "tanh-relu"),
        ({"architecture": "standard", "finetuning_scaling_factor": True}, UnsupportedSae, "fold it"),
        ({"architecture": "topk"}, BadSae, "'k' is missing; expected float"),
        ({"architecture": "standard", "d_in": "12"}, BadSae, "'d_in' is '12'; expected int"),
        ({"architecture": "matryoshka_batchtopk", "k": 3, "matryoshka_widths": [9, 4]}, BadSae, "growing widths"),
        ({"architecture": "standard", "d_in": D + 1}, BadSae, r"W_enc \(12, 40\) instead of \(13, 40\)"),
        ({"architecture": "gated"}, BadSae, "missing b_gate, b_mag, r_mag; unknown b_enc"),
        ({"architecture": "jumprelu"}, BadSae, "missing threshold"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_named(
    facts: dict[str, object], error: type[Exception], says: str, tmp_path: Path
) -> None:
    w = own() | ({"topk_threshold": torch.tensor(1.0)} if "matryoshka" in str(facts["architecture"]) else {})
    with pytest.raises(error, match=says):
        load_foreign("saelens", folder_of(tmp_path, w, **facts))


def test_what_we_write_is_read_as_version_6_and_says_where_it_is_from(tmp_path: Path) -> None:
    save_foreign("saelens", random_sae("batchtopk", model="demo:clip-p8", site="resid_post.2@patch"), tmp_path / "out")
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert (cfg["architecture"], cfg["d_in"], cfg["d_sae"], cfg["dtype"]) == ("jumprelu", D, M, "float32")
    meta = cfg["metadata"]
    assert (meta["sae_lens_version"], meta["model_name"], meta["hook_name"]) == (
        "6.0.0",
        "demo:clip-p8",
        "resid_post.2@patch",
    )
    assert (meta["miclip"]["arch"], meta["miclip"]["k"]) == ("batchtopk", K)
