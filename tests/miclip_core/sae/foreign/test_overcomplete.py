"""overcomplete state dicts written by hand, checked against the library's formulas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from miclip_core.sae.foreign import load_foreign, save_foreign
from schemas.errors import BadRef, BadSae, ThresholdUnset, UnsupportedSae
from tests.foreign_saes import D, K, M, assert_same, random_sae, tokens, topk, write_folder

SAE = random_sae("topk", unit=False)


def own(multiplier: float = 0.0) -> dict[str, Tensor]:
    return {"encoder.final_block.0.weight": SAE.W_enc, "encoder.final_block.0.bias": SAE.b_enc,
            "dictionary._weights": SAE.W_dec, "dictionary.multiplier": torch.tensor(multiplier)}  # fmt: skip


def folder_of(tmp_path: Path, tensors: dict[str, Tensor], name: str = "sae.pt", **facts: object) -> Path:
    return write_folder(tmp_path / "sae", tensors, name, overcomplete=facts)


def pre(x: Tensor) -> Tensor:
    return x @ SAE.W_enc.T + SAE.b_enc


@pytest.mark.parametrize("file", ["sae.pt", "sae.safetensors"])
def test_relu_with_a_normalised_dictionary_times_the_multiplier(file: str, tmp_path: Path) -> None:
    x = tokens()
    f = pre(x).relu()
    unit = SAE.W_dec / (SAE.W_dec.norm(dim=1, keepdim=True) + 1e-8)
    sae = load_foreign("overcomplete", folder_of(tmp_path, own(0.7), file, **{"class": "SAE"}))
    assert_same(sae, f, f @ (unit * torch.tensor(0.7).exp()), x)


@pytest.mark.parametrize(
    ("kind", "dictionary"),
    [
        ("identity", SAE.W_dec),
        ("max_l2", SAE.W_dec / SAE.W_dec.norm(dim=1).max()),
        ("l1", SAE.W_dec / SAE.W_dec.abs().sum(1, keepdim=True)),
        ("max_l1", SAE.W_dec / SAE.W_dec.abs().sum(1).max()),
    ],
    ids=["identity", "max_l2", "l1", "max_l1"],
)
def test_topk_with_every_normalisation_of_the_dictionary(kind: str, dictionary: Tensor, tmp_path: Path) -> None:
    x, arguments = tokens(), {"top_k": K, "dictionary_params": {"normalization": kind}}
    f = topk(pre(x), K)
    sae = load_foreign("overcomplete", folder_of(tmp_path, own(), **{"class": "TopKSAE", "arguments": arguments}))
    assert_same(sae, f, f @ dictionary, x)


def test_thresholds_let_fire_what_is_equal_to_them(tmp_path: Path) -> None:
    x = tokens()
    p = pre(x)
    at = float(p[3, 7].abs())  # one pre-activation is exactly at the threshold
    p_at = p.clone()
    f = p_at.relu() * (p_at >= at)
    sae = load_foreign("overcomplete", folder_of(tmp_path, own(), **{"class": "BatchTopKSAE", "running_threshold": at}))
    assert sae.threshold is not None and bool((torch.tensor(at) > sae.threshold).all())
    unit = SAE.W_dec / SAE.W_dec.norm(dim=1, keepdim=True)
    assert_same(sae, f, f @ unit, x)
    logs = torch.linspace(-3, 1, M)
    f = p.relu() * (p.relu() >= logs.exp())
    jump = load_foreign("overcomplete", folder_of(tmp_path, {**own(), "thresholds": logs}, **{"class": "JumpSAE"}))
    assert_same(jump, f, f @ unit, x)


def test_what_a_state_dict_does_not_say_must_be_said_beside_it(tmp_path: Path) -> None:
    bare = write_folder(tmp_path / "bare", own(), "sae.pt")
    with pytest.raises(BadRef, match=r"(?s)does not say of which class.*overcomplete.json.*running_threshold"):
        load_foreign("overcomplete", bare)
    with pytest.raises(BadSae, match="'top_k' is missing"):
        load_foreign("overcomplete", folder_of(tmp_path, own(), **{"class": "TopKSAE"}))
    with pytest.raises(ThresholdUnset, match=r"float\(sae.running_threshold\)"):
        load_foreign("overcomplete", folder_of(tmp_path, own(), **{"class": "BatchTopKSAE"}))
    with pytest.raises(UnsupportedSae, match="'MpSAE' is not read; expected one of SAE, TopKSAE"):
        load_foreign("overcomplete", folder_of(tmp_path, own(), **{"class": "MpSAE"}))
    with pytest.raises(BadSae, match="missing thresholds"):
        load_foreign("overcomplete", folder_of(tmp_path, own(), **{"class": "JumpSAE"}))
    with pytest.raises(BadSae, match="'arguments' is 3; expected an object"):
        load_foreign("overcomplete", folder_of(tmp_path, own(), **{"class": "SAE", "arguments": 3}))
    deep = {**own(), "encoder.mlp_blocks.0.0.weight": torch.zeros(2, 2)}
    with pytest.raises(BadSae, match=r"unknown encoder\.mlp_blocks\.0\.0\.weight"):
        load_foreign("overcomplete", folder_of(tmp_path, deep, **{"class": "SAE"}))


def test_the_bias_that_the_library_has_not_is_absorbed_and_written_beside(tmp_path: Path) -> None:
    sae, x = random_sae("topk", torch.float64), tokens(torch.float64)
    save_foreign("overcomplete", sae, tmp_path / "out")
    w = load_file(tmp_path / "out" / "sae.safetensors")
    facts = json.loads((tmp_path / "out" / "overcomplete.json").read_text())
    assert facts == {"class": "TopKSAE", "arguments": {"input_shape": D, "nb_concepts": M, "top_k": K,
                                                      "dictionary_params": {"normalization": "identity"}}}  # fmt: skip
    f = topk(x @ w["encoder.final_block.0.weight"].T + w["encoder.final_block.0.bias"], K)
    mean = load_file(tmp_path / "out" / "b_dec.safetensors")["b_dec"]
    assert_same(sae, f, f @ w["dictionary._weights"] + mean, x, 1e-12)
