"""SAELens: loads with SAE.load_from_disk, saves with save_model, save_inference_model and ActivationScaler.save."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sae_lens as lens
import torch
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from tests.interchange.cases import D, K, M

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
_KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "standard": (lens.StandardSAE, lens.StandardSAEConfig, {}),
    "standard-free": (lens.StandardSAE, lens.StandardSAEConfig, {"apply_b_dec_to_input": False}),
    "gated": (lens.GatedSAE, lens.GatedSAEConfig, {}),
    "jumprelu": (lens.JumpReLUSAE, lens.JumpReLUSAEConfig, {}),
    "topk": (lens.TopKSAE, lens.TopKSAEConfig, {"k": K}),
    "topk-rescaled": (lens.TopKSAE, lens.TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True}),
    "topk-layer_norm": (lens.TopKSAE, lens.TopKSAEConfig, {"k": K, "normalize_activations": "layer_norm"}),
    "topk-constant_norm": (lens.TopKSAE, lens.TopKSAEConfig, {"k": K, "normalize_activations": "constant_norm_rescale"}),
    "standard-scaler": (lens.StandardSAE, lens.StandardSAEConfig, {"normalize_activations": "expected_average_only_in"}),
    "topk-scaler": (lens.TopKSAE, lens.TopKSAEConfig, {"k": K, "rescale_acts_by_decoder_norm": True, "normalize_activations": "expected_average_only_in"}),
}  # fmt: skip


def _run(sae: Any) -> Run:
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        f = sae.encode(x)
        return f, sae.decode(f)

    return run


def load(folder: Path, dtype: torch.dtype) -> Run:
    """One of our folders, as anybody would load it."""
    sae = lens.SAE.load_from_disk(folder)
    assert sae.dtype == dtype
    return _run(sae)


def make(folder: Path, dtype: torch.dtype, data: Tensor) -> Iterator[tuple[str, Run]]:
    """Random ones of every kind, and trained ones as they are saved for use and as checkpoints."""
    common = {"d_in": D, "d_sae": M, "dtype": str(dtype).removeprefix("torch.")}
    for name, (kind, config, facts) in _KINDS.items():
        sae = kind(config(**common, **facts))
        _disturb(sae)
        sae.save_model(folder / name)
        yield name, _scaled(sae, folder / name) if name.endswith("-scaler") else _run(sae)
    yield from _trained(folder, common, data)


def _disturb(sae: Any) -> None:
    """Weights that all matter: none zero, decoder rows of different lengths, about a tenth of the latents firing."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(parameter)
            parameter.add_(noise * {"threshold": 0.2, "W_enc": 0.1, "W_dec": 0.1}.get(name, 0.15))
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True)).mul_(torch.linspace(0.6, 1.6, M).to(sae.W_dec)[:, None])
        if hasattr(sae, "threshold"):
            sae.threshold.add_(0.6)


def _scaled(sae: Any, folder: Path) -> Run:
    """A checkpoint in the middle of training: its factor is in a file beside the weights."""
    scaler = ActivationScaler(scaling_factor=1.75)
    scaler.save(str(folder / "activation_scaler.json"))

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        f = sae.encode(scaler.scale(x))
        return f, scaler.unscale(sae.decode(f))

    return run


def _trained(folder: Path, common: dict[str, Any], data: Tensor) -> Iterator[tuple[str, Run]]:
    kinds = {
        "batchtopk": (lens.BatchTopKTrainingSAE, lens.BatchTopKTrainingSAEConfig, {"topk_threshold_lr": 0.2}),
        "matryoshka": (lens.MatryoshkaBatchTopKTrainingSAE, lens.MatryoshkaBatchTopKTrainingSAEConfig,
                       {"topk_threshold_lr": 0.2, "matryoshka_widths": [64, 192, M]}),
        "topk": (lens.TopKTrainingSAE, lens.TopKTrainingSAEConfig, {}),
    }  # fmt: skip
    for name, (kind, config, facts) in kinds.items():
        sae = kind(config(**common, k=K, **facts))
        optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3)
        for step, batch in enumerate(data.split(256)):
            given = TrainStepInput(batch, {}, None, step, False)
            optimiser.zero_grad()
            sae.training_forward_pass(given).loss.backward()
            optimiser.step()
        sae.save_model(folder / f"{name}-checkpoint")
        used = folder / f"{name}-trained"
        sae.save_inference_model(used)
        loaded = _run(lens.SAE.load_from_disk(used))
        if name != "topk":
            yield f"{name}-trained", loaded
        yield f"{name}-checkpoint", loaded
