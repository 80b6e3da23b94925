"""What is exchanged: SAEs of ours for every format that holds them, tokens, and where codes may differ by rounding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miclip_core.sae.foreign import save_foreign
from miclip_core.sae.sae import Sae
from schemas.sae import SaeConfig

D, M, K, N = 48, 384, 12, 512
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
TOLERANCE = {"fp32": 1e-5, "fp64": 1e-10}
LIBRARIES = ("saelens", "sparsify", "dictionary_learning", "overcomplete")
OURS: dict[str, tuple[str, ...]] = {
    "saelens": ("relu", "gated", "topk", "jumprelu", "batchtopk", "matryoshka", "topk-free", "relu-layer_norm", "topk-constant_norm"),
    "sparsify": ("topk", "topk-groupmax", "topk-free"),
    "dictionary_learning": ("relu", "gated", "topk", "jumprelu", "batchtopk", "matryoshka", "topk-free"),
    "overcomplete": ("relu", "topk", "jumprelu", "batchtopk", "matryoshka", "topk-free"),
}  # fmt: skip
"""Per library: arch, and what is unusual about it; `free` takes no bias off its input."""
UNUSUAL: dict[str, dict[str, Any]] = {
    "free": {"apply_b_dec_to_input": False},
    "layer_norm": {"input_norm": "layer_norm"},
    "constant_norm": {"input_norm": "constant_norm"},
    "groupmax": {"groupmax": True},
}
THEIRS: dict[str, tuple[str, ...]] = {
    "saelens": ("standard", "standard-free", "gated", "jumprelu", "topk", "topk-rescaled", "topk-layer_norm",
                "topk-constant_norm", "standard-scaler", "topk-scaler", "batchtopk-trained", "matryoshka-trained",
                "batchtopk-checkpoint", "matryoshka-checkpoint", "topk-checkpoint"),
    "sparsify": ("topk", "groupmax", "topk-trained"),
    "dictionary_learning": ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK",
                            "BatchTopKSAE", "MatryoshkaBatchTopKSAE"),
    "overcomplete": ("SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE", "TopKSAE-multiplier"),
}  # fmt: skip
"""Per library: what it makes and saves itself."""


def make_tokens(n: int = N, seed: int = 7) -> np.ndarray:
    """[n, 48] float64 tokens that float32 holds: 96 directions of which each token has few, and a mean."""
    make = np.random.default_rng(seed)
    directions = np.random.default_rng(1).standard_normal((2 * D, D)) / D**0.5
    codes = make.exponential(2.0, (n, 2 * D)) * (make.random((n, 2 * D)) < 0.08)
    x = codes @ directions + 0.05 * make.standard_normal((n, D)) + np.linspace(-0.5, 0.5, D)
    return x.astype(np.float32).astype(np.float64)


def make_sae(name: str, dtype: torch.dtype) -> Sae:
    """An SAE of ours by its name in OURS."""
    arch, _, unusual = name.partition("-")
    make = torch.Generator().manual_seed(sum(name.encode()))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    W_dec = torch.nn.functional.normalize(draw(M, D), dim=1)
    weights = {"W_enc": W_dec + 0.03 * draw(M, D), "b_enc": 0.05 * draw(M), "W_dec": W_dec, "b_dec": 0.3 * draw(D)}
    facts: dict[str, Any] = {"arch": arch, "d": D, "latents": M, **UNUSUAL.get(unusual, {})}
    if arch in ("topk", "batchtopk", "matryoshka"):
        facts["k"] = K
    if arch == "matryoshka":
        facts["group_sizes"] = (64, 128, 192)
    if arch == "gated":
        weights |= {
            "b_enc": torch.zeros(M),
            "b_gate": draw(M).abs() * -0.3,
            "b_mag": 0.05 * draw(M),
            "r_mag": 0.2 * draw(M),
        }
    if arch == "jumprelu":
        weights["threshold"] = 0.5 + 0.3 * draw(M).abs()
    if arch in ("batchtopk", "matryoshka"):
        weights["threshold"] = torch.full((M,), 0.875)
    return Sae.from_tensors(
        SaeConfig(**facts), {key: value.float().to(dtype) for key, value in weights.items()}
    ).check()


def write_ours(library: str, folder: Path) -> Iterator[Path]:
    """Every SAE of OURS in the library's format, as folder/fp32/name and folder/fp64/name."""
    for word, dtype in DTYPES.items():
        (folder / word).mkdir(parents=True, exist_ok=True)
        for name in OURS[library]:
            save_foreign(library, make_sae(name, dtype), folder / word / name)
            yield folder / word / name


def undecided(sae: Sae, x: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, U] where rounding decides whether a latent fires: pre-activations this close to what they are compared with."""
    wide = sae.to(torch.float64)
    p = wide.pre_activations(x.double())
    slack = 32 * torch.finfo(dtype).eps * float(p.abs().max())
    k, config = sae.config.k or 1, sae.config
    if config.groupmax:
        best = p.unflatten(1, (k, -1)).topk(2, dim=2).values
        return (best[..., 0] - best[..., 1] < slack).repeat_interleave(M // k, 1) | (p.abs() < slack)
    if config.arch == "topk":
        best = p.topk(k + 1, dim=1).values
        return (best[:, -2:-1] - best[:, -1:] < slack) | (p.abs() < slack)
    if config.arch == "gated":
        magnitude = p * wide.gate["r_mag"].exp() + wide.gate["b_mag"]
        return ((p + wide.gate["b_gate"]).abs() < slack) | (magnitude.abs() < slack)
    return (p - (0 if wide.threshold is None else wide.threshold)).abs() < slack


def assert_agreement(sae: Sae, x: np.ndarray, f: np.ndarray, x_hat: np.ndarray, word: str) -> dict[str, float]:
    """Ours and theirs fire on the same latents but for ties, with the same codes and reconstructions; returns what differs."""
    tolerance, dtype = TOLERANCE[word], DTYPES[word]
    assert f.dtype == x_hat.dtype == np.dtype(str(dtype).removeprefix("torch."))
    tokens, theirs, made = torch.from_numpy(x).to(dtype), torch.from_numpy(f), torch.from_numpy(x_hat)
    codes, ours_hat = sae.to(dtype).reconstruct(tokens)
    ours = codes.dense()
    share = float((theirs != 0).float().mean())
    assert 0.002 < share < 0.7, f"{share:.4f} of the latents fire: nothing to compare"
    differ = (ours != 0) != (theirs != 0)
    assert not bool((differ & ~undecided(sae, tokens, dtype)).any())
    tied = differ.any(1)
    assert float(tied.float().mean()) < 0.01
    of_codes = float((ours[~tied] - theirs[~tied]).abs().max() / theirs.abs().max())
    of_tokens = float((ours_hat[~tied] - made[~tied]).norm() / made[~tied].norm())
    assert of_codes < tolerance and of_tokens < tolerance, (of_codes, of_tokens)
    return {"codes": of_codes, "reconstruction": of_tokens, "fire": share, "tied rows": int(tied.sum())}
