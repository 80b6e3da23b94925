"""Measures what the generator draws against the true images of its latents, by eye of pixel and of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miclip_core.generate.latents import normal_latents
from miclip_core.generate.recipe import from_path
from miclip_core.world.evaluate import see
from miclip_core.world.factors import Factors, draw_factors
from miclip_core.world.latent import CHOICES, LENGTH, meaning_of
from miclip_core.world.recipes import MEAN, STD
from miclip_core.world.towers import load_model
from miclip_core.zoo.shipped import FOLDER

JUDGE = "clip-p8"
_BATCH = 50
_CLEAR = 0.9  # weight from which a latent counts as one that asks for a single value
_MIDDLE_RADIUS = 10.5  # between small and large


def measure_generator(directory: Path, n: int = 1800, seed: int = 0) -> dict[str, dict[str, float]]:
    """Figures over n latents of `seed`, rounded for the card.

    psnr: dB against the true image, mean and the value that 5 % of the images stay below. accuracy: the share of images in
    which the judge, zero-shot, sees the value that has most weight. accuracy_clear: the same of the latents that give one
    value more than 0.9. truth, truth_clear: both for the true images, which bound what a generator can reach here.
    """
    latents = normal_latents(seed, range(n), LENGTH)
    factors = meaning_of(latents).factors()
    true, drawn = torch.from_numpy(draw_factors(factors)), _draw(directory, latents)
    noise = -10 * (true - drawn).square().mean((1, 2, 3)).log10().numpy()
    values, clear = _asked(factors)
    judge = load_model(FOLDER / JUDGE)
    found: dict[str, dict[str, float]] = {"psnr": {"mean": noise.mean(), "worst_5_percent": np.quantile(noise, 0.05)}}
    for name, images in (("accuracy", drawn), ("truth", true)):
        right = {category: _seen(judge, images, category) == value for category, value in values.items()}
        found[name] = {category: hits.mean() for category, hits in right.items()}
        found[f"{name}_clear"] = {category: hits[clear[category]].mean() for category, hits in right.items()}
    return {group: {name: round(float(value), 4) for name, value in part.items()} for group, part in found.items()}


@torch.no_grad()
def _draw(directory: Path, latents_BZ: Tensor) -> Tensor:
    recipe = from_path(directory.name, directory)
    built = recipe.build()
    recipe.fill(built)
    decoder = built.root.eval()
    return torch.cat([decoder(part) for part in latents_BZ.split(_BATCH)])


def _asked(factors: Factors) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The value of each category that has most weight, and whether it has nearly all of it."""
    weights = {category: getattr(factors, category) for category in CHOICES}
    values = {category: part.argmax(1) for category, part in weights.items()}
    clear = {category: part.max(1) > _CLEAR for category, part in weights.items()}
    values["size"] = (factors.radius > _MIDDLE_RADIUS).astype(int)
    clear["size"] = abs(factors.radius - _MIDDLE_RADIUS) > 2
    return values, clear


def _seen(judge: Any, images_BCHW: Tensor, category: str) -> np.ndarray:
    return see(judge, ((part - MEAN) / STD for part in images_BCHW.split(_BATCH)), category)
