"""Runs in the environment of dictionary_learning: trains its TopK SAE on given tokens and says how well it reconstructs.

python -m tests.interchange.topk_trainer FOLDER: reads FOLDER/{train,held}.npy and, for every run, RUN/directions.npy and
RUN/settings.json below it; writes RUN/theirs.npz with x_hat of the held-out tokens and on how many each latent fired.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from miclip_core.torchvision_shim import ensure_torchvision

ensure_torchvision()  # before transformers, which the library imports
from dictionary_learning.trainers.top_k import TopKTrainer  # noqa: E402


def main(folder: Path) -> None:
    """Train every run on the same tokens."""
    train, held = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("train", "held"))
    for path in sorted(folder.glob("*/settings.json")):
        run(path.parent, train, held)


def run(folder: Path, train: torch.Tensor, held: torch.Tensor) -> None:
    """Its own trainer and schedule, its recommended normalisation (unit mean squared norm), our first directions."""
    directions, s = (
        torch.from_numpy(np.load(folder / "directions.npy")),
        json.loads((folder / "settings.json").read_text()),
    )
    scale = float(train.square().sum(1).mean().sqrt())
    trainer = TopKTrainer(
        steps=s["steps"], activation_dim=train.shape[1], dict_size=s["latents"], k=s["k"], layer=0, lm_name="none",
        warmup_steps=s["warmup_steps"], decay_start=int(s["decay_from"] * s["steps"]), seed=s["seed"], device="cpu",
    )  # fmt: skip
    trainer.dead_feature_threshold = s["dead_tokens"]
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(directions)
        trainer.ae.decoder.weight.copy_(directions.T)
    for step, x in enumerate(train.split(s["batch"])[: s["steps"]]):
        trainer.update(step, x / scale)
    with torch.no_grad():
        f = trainer.ae.encode(held / scale)
        x_hat = trainer.ae.decode(f) * scale
    np.savez(folder / "theirs.npz", x_hat=x_hat.numpy(), fired=(f > 0).sum(0).numpy())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
