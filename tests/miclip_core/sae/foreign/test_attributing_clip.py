"""Checkpoints of Attributing-CLIP, made with torch's own weight normalisation as that code makes them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from miclip_core.sae.foreign import load_foreign
from schemas.errors import BadRef, BadSae
from tests.foreign_saes import D, K, M, assert_same, tokens


def module() -> nn.Module:
    """The layers under the names of that code: a weight-normed encoder, a decoder of unit columns without bias."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = nn.Module()
        net.encoder = nn.Sequential(nn.utils.weight_norm(nn.Linear(D, M)))
        net.decoder = nn.utils.weight_norm(nn.Linear(M, D, bias=False), dim=1)
    with torch.no_grad():
        net.encoder[0].weight_g.mul_(torch.rand(M, 1) + 0.5)
        net.encoder[0].weight_v.mul_(torch.rand(M, 1) + 0.5)
        net.decoder.weight_v.mul_(3.0)
        net.decoder.weight_g.fill_(1.0)
    return net


def checkpoint(tmp_path: Path, state: dict[str, Tensor] | None = None, settings: str = f"sae_k: {K}\n") -> Path:
    content = {"epoch": 29, "global_step": 1200, "pytorch-lightning_version": "2.4.0", "state_dict": state or module().state_dict(),
               "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": "/x"}}}  # fmt: skip
    torch.save(content, tmp_path / "last.ckpt")
    (tmp_path / "run.yaml").write_text(f"model_name: clip_vit_b32\nsae_token: cls\n{settings}lr: 0.0002\n")
    return tmp_path


def test_the_largest_k_are_kept_whatever_their_sign(tmp_path: Path) -> None:
    net, x = module(), tokens()
    sae = load_foreign("attributing_clip", checkpoint(tmp_path))
    with torch.no_grad():
        z = net.encoder(x)
        kept = torch.zeros_like(z).scatter(1, z.topk(K, dim=1).indices, 1.0) * z
        assert_same(sae, kept, net.decoder(kept), x)
        few = sae.with_config(k=30)
        low = torch.zeros_like(z).scatter(1, z.topk(30, dim=1).indices, 1.0) * z
        assert bool((low < 0).any())
        assert torch.allclose(few.encode(x).dense(), low, atol=1e-6)
    assert not sae.config.post_topk_relu and not sae.config.apply_b_dec_to_input
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(M)) and bool((sae.b_dec == 0).all())


@pytest.mark.parametrize("settings", ["  sae_k: 5\n", '"sae_k": 5,\n'])
def test_k_is_taken_from_settings_as_they_are_written(settings: str, tmp_path: Path) -> None:
    assert load_foreign("attributing_clip", checkpoint(tmp_path, None, settings)).config.k == 5
    assert load_foreign("attributing_clip", tmp_path / "last.ckpt").config.k == 5


def test_k_that_is_missing_or_ambiguous_is_asked_for(tmp_path: Path) -> None:
    checkpoint(tmp_path, None, "")
    with pytest.raises(BadRef, match=r'no settings there say it; .*\{"sae_k": 64\}'):
        load_foreign("attributing_clip", tmp_path)
    (tmp_path / "sae.json").write_text('{"sae_k": 64}')
    with pytest.raises(BadSae, match="k is 64, but there are 40 latents"):
        load_foreign("attributing_clip", tmp_path)
    (tmp_path / "run.yaml").write_text("sae_k: 8\n")
    with pytest.raises(BadRef, match=r"say \[8, 64\]"):
        load_foreign("attributing_clip", tmp_path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    state = dict(module().state_dict())
    del state["decoder.weight_g"]
    state["head.weight"] = torch.zeros(3)
    with pytest.raises(BadSae, match=r"missing decoder\.weight_g; unknown head\.weight"):
        load_foreign("attributing_clip", checkpoint(tmp_path, state))
    flat = dict(module().state_dict())
    flat["encoder.0.weight_v"] = flat["encoder.0.weight_v"].clone()
    flat["encoder.0.weight_v"][3] = 0
    with pytest.raises(BadSae, match="rows without length"):
        load_foreign("attributing_clip", checkpoint(tmp_path, flat))
