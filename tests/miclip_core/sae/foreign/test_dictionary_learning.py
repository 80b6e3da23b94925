"""dictionary_learning folders written by hand, checked against the library's formulas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from miclip_core.sae.foreign import load_foreign, save_foreign
from schemas.errors import BadRef, BadSae, ThresholdUnset, UnsupportedSae
from tests.foreign_saes import D, K, M, assert_same, random_sae, tokens, topk, write_folder

SAE = random_sae("topk")
LINEAR = {"encoder.weight": SAE.W_enc, "encoder.bias": SAE.b_enc, "decoder.weight": SAE.W_dec.T}
MATRICES = {"W_enc": SAE.W_enc.T, "b_enc": SAE.b_enc, "W_dec": SAE.W_dec, "b_dec": SAE.b_dec}
BUFFERS = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(1.2)}


def folder_of(tmp_path: Path, name: str, tensors: dict[str, Tensor], **facts: object) -> Path:
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": M, "lm_name": "x", "layer": 3, **facts}
    return write_folder(tmp_path / "trainer_0", tensors, "ae.pt", config={"trainer": trainer, "buffer": {"d": D}})


def test_topk_ignores_its_threshold_and_batchtopk_lives_by_it(tmp_path: Path) -> None:
    w, x = {**LINEAR, "b_dec": SAE.b_dec, **BUFFERS}, tokens()
    p = ((x - SAE.b_dec) @ SAE.W_enc.T + SAE.b_enc).relu()
    for name, f in (("AutoEncoderTopK", topk(p, K)), ("BatchTopKSAE", p * (p > 1.2))):
        sae = load_foreign("dictionary_learning", folder_of(tmp_path, name, w, k=K))
        assert_same(sae, f, f @ SAE.W_dec + SAE.b_dec, x)
        assert sae.config.k == K


def test_matryoshka(tmp_path: Path) -> None:
    w, x = {**MATRICES, **BUFFERS, "group_sizes": torch.tensor([10, 10, 20])}, tokens()
    p = ((x - SAE.b_dec) @ SAE.W_enc.T + SAE.b_enc).relu()
    sae = load_foreign("dictionary_learning", folder_of(tmp_path, "MatryoshkaBatchTopKSAE", w, k=K))
    assert_same(sae, p * (p > 1.2), (p * (p > 1.2)) @ SAE.W_dec + SAE.b_dec, x)
    assert sae.config.group_sizes == (10, 10, 20)
    w["group_sizes"] = torch.tensor([10, 10, 10])
    with pytest.raises(BadSae, match=r"\[10, 10, 10\] sum to 30; expected the 40"):
        load_foreign("dictionary_learning", folder_of(tmp_path, "MatryoshkaBatchTopKSAE", w, k=K))


def test_jumprelu_takes_no_bias_off_its_input(tmp_path: Path) -> None:
    threshold, x = torch.linspace(-1, 3, M), tokens()
    p = x @ SAE.W_enc.T + SAE.b_enc
    f = (p * (p > threshold)).relu()
    sae = load_foreign(
        "dictionary_learning", folder_of(tmp_path, "JumpReluAutoEncoder", {**MATRICES, "threshold": threshold})
    )
    assert_same(sae, f, f @ SAE.W_dec + SAE.b_dec, x)


def test_both_relu_kinds(tmp_path: Path) -> None:
    x = tokens()
    f = ((x - SAE.b_dec) @ SAE.W_enc.T + SAE.b_enc).relu()
    old = load_foreign("dictionary_learning", folder_of(tmp_path, "AutoEncoder", {**LINEAR, "bias": SAE.b_dec}))
    assert_same(old, f, f @ SAE.W_dec + SAE.b_dec, x)
    f = (x @ SAE.W_enc.T + SAE.b_enc).relu()
    w = {**LINEAR, "decoder.bias": SAE.b_dec}
    assert_same(load_foreign("dictionary_learning", folder_of(tmp_path, "AutoEncoderNew", w)),
                f, f @ SAE.W_dec + SAE.b_dec, x)  # fmt: skip


def test_gated(tmp_path: Path) -> None:
    g, x = random_sae("gated").gate, tokens()
    w = {"encoder.weight": SAE.W_enc, "decoder.weight": SAE.W_dec.T, "decoder_bias": SAE.b_dec,
         "r_mag": g["r_mag"], "gate_bias": g["b_gate"], "mag_bias": g["b_mag"]}  # fmt: skip
    c = (x - SAE.b_dec) @ SAE.W_enc.T
    f = (c * g["r_mag"].exp() + g["b_mag"]).relu() * (c + g["b_gate"] > 0)
    sae = load_foreign("dictionary_learning", folder_of(tmp_path, "GatedAutoEncoder", w))
    assert_same(sae, f, f @ SAE.W_dec + SAE.b_dec, x)


def test_checkpoints_take_the_settings_of_the_folder_above(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "AutoEncoder", {**LINEAR, "bias": SAE.b_dec})
    (folder / "checkpoints").mkdir()
    (folder / "ae.pt").rename(folder / "checkpoints" / "ae_100.pt")
    assert load_foreign("dictionary_learning", folder / "checkpoints" / "ae_100.pt").config.arch == "relu"


def test_a_backup_of_an_unfinished_run_is_told_from_a_finished_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "AutoEncoder", {})
    torch.save({"step": 100, "ae": {**LINEAR, "bias": SAE.b_dec}, "optimizer": {}}, folder / "ae.pt")
    with pytest.raises(BadSae, match=r"not finished .*'ae'.*not scaled back"):
        load_foreign("dictionary_learning", folder)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    w = {**LINEAR, "b_dec": SAE.b_dec, **BUFFERS}
    with pytest.raises(BadSae, match=r"its k is 5, but config\.json says 64"):
        load_foreign("dictionary_learning", folder_of(tmp_path, "AutoEncoderTopK", w, k=64))
    with pytest.raises(UnsupportedSae, match="'IdentityDict' is not read; expected one of AutoEncoderTopK"):
        load_foreign("dictionary_learning", folder_of(tmp_path, "IdentityDict", w))
    with pytest.raises(BadSae, match="missing bias; unknown b_dec, k, threshold"):
        load_foreign("dictionary_learning", folder_of(tmp_path, "AutoEncoder", w))
    with pytest.raises(BadSae, match="expected a matrix W_enc, found only b_dec"):
        load_foreign("dictionary_learning", folder_of(tmp_path, "JumpReluAutoEncoder", w))
    unset = {**w, "threshold": torch.tensor(-1.0)}
    with pytest.raises(ThresholdUnset, match=r"threshold is -1.*Train for more steps"):
        load_foreign("dictionary_learning", folder_of(tmp_path, "BatchTopKSAE", unset))
    assert load_foreign("dictionary_learning", folder_of(tmp_path, "AutoEncoderTopK", unset)).threshold is None
    (tmp_path / "trainer_0" / "config.json").write_text("[]")
    with pytest.raises(BadSae, match="found list, expected an object"):
        load_foreign("dictionary_learning", tmp_path / "trainer_0")
    (tmp_path / "trainer_0" / "config.json").unlink()
    with pytest.raises(BadRef, match=r"trainer_0/ae\.pt: there is no config\.json beside it or one folder above"):
        load_foreign("dictionary_learning", tmp_path / "trainer_0")


def test_names_and_shapes_that_we_write_are_those_of_the_library(tmp_path: Path) -> None:
    save_foreign("dictionary_learning", random_sae("matryoshka", model="demo:clip-p8"), tmp_path / "out")
    shapes = {name: tuple(tensor.shape) for name, tensor in torch.load(tmp_path / "out" / "ae.pt").items()}
    assert shapes == {
        "W_enc": (D, M),
        "b_enc": (M,),
        "W_dec": (M, D),
        "b_dec": (D,),
        "k": (),
        "threshold": (),
        "group_sizes": (3,),
    }
    trainer = json.loads((tmp_path / "out" / "config.json").read_text())["trainer"]
    assert (trainer["dict_class"], trainer["k"], trainer["activation_dim"], trainer["dict_size"], trainer["lm_name"]) == (
        "MatryoshkaBatchTopKSAE", K, D, M, "demo:clip-p8",
    )  # fmt: skip
