"""overcomplete: builds what `overcomplete.json` says, trains with train_sae, saves the state dict; and a whole module."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from overcomplete import sae as library
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.interchange.cases import D, K, M

Run = Callable[[Tensor], tuple[Tensor, Tensor]]


def _run(sae: Any, add: Tensor | float = 0.0) -> Run:
    sae.eval()

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        _, f = sae.encode(x)
        return f, sae.decode(f) + add

    return run


def load(folder: Path, dtype: torch.dtype) -> Run:
    """One of our folders: the class and arguments that it states, its state dict, and b_dec added by the caller."""
    facts = json.loads((folder / "overcomplete.json").read_text())
    sae = getattr(library, facts["class"])(**facts["arguments"]).to(dtype)
    sae.load_state_dict(load_file(folder / "sae.safetensors"))
    return _run(sae, load_file(folder / "b_dec.safetensors")["b_dec"])


def make(folder: Path, dtype: torch.dtype, data: Tensor) -> Iterator[tuple[str, Run]]:
    """Every class, trained for two epochs; BatchTopK counts per batch and keeps its threshold out of its state."""
    for name in ("SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE", "TopKSAE-multiplier"):
        kind = name.split("-")[0]
        arguments: dict[str, Any] = {"TopKSAE": {"top_k": K}, "BatchTopKSAE": {"top_k": K * 256}}.get(kind, {})
        if name.endswith("multiplier"):
            arguments = {**arguments, "dictionary_params": {"use_multiplier": True, "normalization": "max_l2"}}
        torch.manual_seed(1)
        sae = getattr(library, kind)(D, M, **arguments).to(dtype)
        optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3)
        with contextlib.redirect_stdout(io.StringIO()):
            library.train_sae(sae, data.split(256), _loss, optimiser, nb_epochs=2)
        (folder / name).mkdir(parents=True)
        save_file(sae.state_dict(), folder / name / "sae.safetensors")
        facts = {"class": kind, "arguments": arguments}
        if kind == "BatchTopKSAE":
            facts["running_threshold"] = float(sae.running_threshold)
        (folder / name / "overcomplete.json").write_text(json.dumps(facts))
        if name == "SAE":
            torch.save(sae, folder.parent / f"module-{folder.name}.pt")
        yield name, _run(sae)


def _loss(x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor) -> Tensor:
    return (x - x_hat).square().sum(1).mean() + 0.01 * codes.sum(1).mean()
