"""sparsify: loads with SparseCoder.load_from_disk, trains with its own loss, saves with save_to_disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor

from tests.interchange.cases import D, K, M

Run = Callable[[Tensor], tuple[Tensor, Tensor]]


def _run(sae: SparseCoder) -> Run:
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        out = sae.encode(x)
        f = torch.zeros_like(out.pre_acts).scatter(1, out.top_indices, out.top_acts)
        return f, sae.decode(out.top_acts, out.top_indices)

    return run


def load(folder: Path, dtype: torch.dtype) -> Run:
    """One of our folders, as anybody would load it."""
    sae = SparseCoder.load_from_disk(folder)
    assert sae.dtype == dtype
    return _run(sae)


def make(folder: Path, dtype: torch.dtype, data: Tensor) -> Iterator[tuple[str, Run]]:
    """Both activations with random weights, and a trained one whose width comes from the expansion factor."""
    for name in ("topk", "groupmax", "topk-trained"):
        width = {"expansion_factor": M // D} if name == "topk-trained" else {"num_latents": M}
        config = SparseCoderConfig(k=K, activation=name.split("-")[0], normalize_decoder=name != "groupmax", **width)
        sae = SparseCoder(D, config, dtype=dtype)
        with torch.no_grad():
            for parameter in (sae.encoder.bias, sae.b_dec):
                parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter))
        if name == "topk-trained":
            optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3)
            for batch in data.split(256):
                optimiser.zero_grad()
                sae(batch).fvu.backward()
                optimiser.step()
                sae.set_decoder_norm_to_unit_norm()
        sae.save_to_disk(folder / name)
        yield name, _run(sae)
