"""Runs in a library's own environment: runs our SAEs with it, and makes, saves and runs SAEs of its own.

python -m tests.interchange.child LIBRARY FOLDER: reads FOLDER/x.npy and FOLDER/ours/<dtype>/<name>, writes
FOLDER/theirs/<dtype>/<name> and, for both, the codes f and reconstructions x_hat as FOLDER/<which>-<dtype>-<name>.npz.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from miclip_core.torchvision_shim import ensure_torchvision

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Tokens [N,d] -> dense codes [N,U] and reconstructions [N,d]."""


def main(library: str, folder: Path) -> None:
    """Do it all in one process, since importing these libraries takes seconds."""
    ensure_torchvision()
    torch.manual_seed(0)
    of = import_module(f"tests.interchange.libraries.{library}")
    x = torch.from_numpy(np.load(folder / "x.npy"))
    data = torch.from_numpy(np.load(folder / "data.npy"))
    for word, dtype in (("fp32", torch.float32), ("fp64", torch.float64)):
        for sae in sorted((folder / "ours" / word).iterdir()):
            _keep(folder / f"ours-{word}-{sae.name}.npz", of.load(sae, dtype), x.to(dtype))
        for name, run in of.make(folder / "theirs" / word, dtype, data.to(dtype)):
            _keep(folder / f"theirs-{word}-{name}.npz", run, x.to(dtype))


def _keep(path: Path, run: Run, x: Tensor) -> None:
    with torch.no_grad():
        f, x_hat = run(x)
    np.savez(path, f=f.numpy(), x_hat=x_hat.numpy())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
