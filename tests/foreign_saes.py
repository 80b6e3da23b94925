"""Small SAEs with random weights, files of other libraries written by hand, and what their formulas give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from miclip_core.sae.sae import Sae
from schemas.sae import Arch, SaeConfig

D, M, K, N = 12, 40, 5, 64


def random_sae(arch: Arch, dtype: torch.dtype = torch.float32, seed: int = 0, unit: bool = True, **facts: Any) -> Sae:
    """An SAE of width 12 and 40 latents whose every weight matters; thresholds let about a fifth of the latents fire."""
    make = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    W_dec = draw(M, D)
    W_dec /= W_dec.norm(dim=1, keepdim=True) if unit else 2.0
    config = {
        "arch": arch,
        "d": D,
        "latents": M,
        "k": K if arch not in ("relu", "gated", "jumprelu") else None,
        **facts,
    }
    if arch == "matryoshka":
        config = {"group_sizes": (8, 12, 20), **config}
    threshold = {
        "jumprelu": 1 + draw(M).abs(),
        "batchtopk": torch.full((M,), 1.25),
        "matryoshka": torch.full((M,), 1.5),
    }
    weights = {"W_enc": W_dec + 0.1 * draw(M, D), "W_dec": W_dec, "b_dec": draw(D)}
    weights["b_enc"] = torch.zeros(M) if arch == "gated" else 0.1 * draw(M)
    if arch == "gated":
        weights |= {"b_gate": draw(M) - 1, "b_mag": 0.1 * draw(M), "r_mag": 0.3 * draw(M)}
    if arch in threshold:
        weights["threshold"] = threshold[arch]
    # the numbers are those of float32 whatever the dtype, so that formats that store float32 lose nothing
    tensors = {name: tensor.float().to(dtype) for name, tensor in weights.items()}
    return Sae.from_tensors(SaeConfig(**config), tensors).check()


def tokens(dtype: torch.dtype = torch.float32, seed: int = 100) -> Tensor:
    """[64, 12] tokens off the origin."""
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.5 * x + 0.5).float().to(dtype)


def assert_same(sae: Sae, f: Tensor, x_hat: Tensor, x: Tensor, tolerance: float = 1e-5) -> None:
    """The codes of `sae` are on the same latents as f [N,U] and equal them, and so do the reconstructions."""
    codes, made = sae.reconstruct(x)
    ours = codes.dense()
    assert 0 < int((f != 0).sum()) < f.numel() * 0.7
    assert torch.equal(ours != 0, f != 0)
    torch.testing.assert_close(ours, f, rtol=tolerance, atol=tolerance * float(f.abs().max()))
    torch.testing.assert_close(made, x_hat, rtol=tolerance, atol=tolerance * float(x_hat.abs().max()))


def topk(p: Tensor, k: int) -> Tensor:
    """p where it is among the k largest of its row and positive, else 0."""
    return torch.where(p >= p.sort(dim=1, descending=True).values[:, k - 1 : k], p, torch.zeros(())).relu()


def write_folder(folder: Path, tensors: Mapping[str, Tensor], name: str, **files: object) -> Path:
    """A folder with tensors (safetensors, or a pickle where the name ends in .pt) and JSON files (cfg=... -> cfg.json)."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    if name.endswith((".pt", ".ckpt")):
        torch.save(own, folder / name)
    else:
        save_file(own, folder / name)
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder
