"""sparsify folders written by hand, checked against the library's formulas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from miclip_core.sae.foreign import load_foreign, save_foreign
from schemas.errors import BadSae, UnsupportedSae
from tests.foreign_saes import D, K, M, assert_same, random_sae, tokens, topk, write_folder

SETTINGS = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": M, "k": K,
            "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D}  # fmt: skip


def own() -> dict[str, Tensor]:
    sae = random_sae("topk")
    return {"encoder.weight": sae.W_enc, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}


def folder_of(tmp_path: Path, tensors: dict[str, Tensor], **facts: object) -> Path:
    cfg = {name: value for name, value in {**SETTINGS, **facts}.items() if value is not None}
    return write_folder(tmp_path / "layers.3", tensors, "sae.safetensors", cfg=cfg)


@pytest.mark.parametrize("facts", [{}, {"activation": None}, {"d_in": D, "num_latents": M}], ids=str)
def test_topk(facts: dict[str, object], tmp_path: Path) -> None:
    w, x = own(), tokens()
    f = topk((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], K)
    assert_same(load_foreign("sparsify", folder_of(tmp_path, w, **facts)), f, f @ w["W_dec"] + w["b_dec"], x)


def test_no_width_means_the_expansion_factor(tmp_path: Path) -> None:
    w = {name: tensor[:36] if tensor.shape[0] == M else tensor for name, tensor in own().items()}
    assert load_foreign("sparsify", folder_of(tmp_path, w, num_latents=0, expansion_factor=3)).config.latents == 36


def test_groupmax_keeps_the_largest_of_each_group(tmp_path: Path) -> None:
    w, x = own(), tokens()
    p = ((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu().unflatten(1, (K, M // K))
    f = torch.where(p == p.amax(2, keepdim=True), p, torch.zeros(())).flatten(1)
    sae = load_foreign("sparsify", folder_of(tmp_path, w, activation="groupmax"))
    assert_same(sae, f, f @ w["W_dec"] + w["b_dec"], x)
    with pytest.raises(BadSae, match="do not divide"):
        load_foreign("sparsify", folder_of(tmp_path, w, activation="groupmax", k=7))


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"transcode": True}, "transcode is set: it predicts another"),
        ({"skip_connection": True}, "skip_connection is set: it adds"),
        ({"signed": True}, "signed is set"),
        ({"activation": "relu"}, "'relu' is not read; expected topk or groupmax"),
    ],
    ids=str,
)
def test_what_is_no_autoencoder_of_this_kind_is_refused(facts: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSae, match=says):
        load_foreign("sparsify", folder_of(tmp_path, own(), **facts))


def test_missing_and_unknown_tensors_are_listed(tmp_path: Path) -> None:
    w = own()
    w["W_skip"] = w.pop("W_dec")
    with pytest.raises(BadSae, match=r"missing W_dec; unknown W_skip\. Expected encoder\.weight, encoder\.bias"):
        load_foreign("sparsify", folder_of(tmp_path, w))


def test_settings_that_we_write_say_whether_the_decoder_is_of_unit_norm(tmp_path: Path) -> None:
    for unit in (True, False):
        save_foreign("sparsify", random_sae("topk", unit=unit), tmp_path / str(unit))
        cfg = json.loads((tmp_path / str(unit) / "cfg.json").read_text())
        assert cfg == {**SETTINGS, "expansion_factor": 3, "normalize_decoder": unit}
