"""dictionary_learning: loads with load_dictionary, trains and saves with trainSAE, with its normalisation of activations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from dictionary_learning.dictionary import AutoEncoderNew
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.standard import StandardTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE
from dictionary_learning.utils import load_dictionary
from torch import Tensor

from tests.interchange.cases import D, K, M

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
STEPS = 24
_TRAINERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "AutoEncoder": (StandardTrainer, {"sparsity_warmup_steps": 5}),
    "GatedAutoEncoder": (GatedSAETrainer, {"sparsity_warmup_steps": 5}),
    "JumpReluAutoEncoder": (JumpReluTrainer, {"sparsity_warmup_steps": 5}),
    "AutoEncoderTopK": (TopKTrainer, {"k": K}),
    "BatchTopKSAE": (BatchTopKTrainer, {"k": K, "threshold_start_step": 3, "decay_start": 20}),
    "MatryoshkaBatchTopKSAE": (MatryoshkaBatchTopKTrainer, {"k": K, "threshold_start_step": 3, "decay_start": 20, "group_fractions": [0.25, 0.25, 0.5]}),
}  # fmt: skip


def load(folder: Path, dtype: torch.dtype) -> Run:
    """A folder as anybody would load it; the library builds float32, so float64 is loaded into what it built."""
    sae, _ = load_dictionary(str(folder), "cpu")
    if dtype == torch.float64:
        sae = sae.double()
        sae.load_state_dict(torch.load(folder / "ae.pt"))

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        f = sae.encode(x)
        return f, sae.decode(f)

    return run


def make(folder: Path, dtype: torch.dtype, data: Tensor) -> Iterator[tuple[str, Run]]:
    """Every class, trained for some steps and saved by the library with the norm of activations folded in."""
    common = {"activation_dim": D, "dict_size": M, "layer": 1, "lm_name": "x", "steps": STEPS, "warmup_steps": 4, "lr": 1e-3,
              "device": "cpu", "seed": 0}  # fmt: skip
    batches = list(data.float().split(256))
    for name, (trainer, facts) in _TRAINERS.items():
        trainSAE(
            [batch.clone() for batch in batches], [{"trainer": trainer, **common, **facts}], STEPS,
            save_dir=str(folder / name), normalize_activations=True, device="cpu",
        )  # fmt: skip
        (folder / name / "trainer_0").rename(folder / f"{name}-saved")
        yield name, load(_plain(folder, name), dtype)
    sae = AutoEncoderNew(D, M).to(dtype)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter))
    new = folder / "AutoEncoderNew"
    new.mkdir()
    torch.save(sae.state_dict(), new / "ae.pt")
    (new / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderNew"}}))
    yield "AutoEncoderNew", lambda x: (sae.encode(x), sae.decode(sae.encode(x)))


def _plain(folder: Path, name: str) -> Path:
    (folder / name).rmdir()
    return (folder / f"{name}-saved").rename(folder / name)
