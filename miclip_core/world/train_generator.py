"""Trains the generator of the demo zoo: `python -m miclip_core.world.train_generator --out DIR`."""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from miclip_core.generate.files import CONFIG, WEIGHTS
from miclip_core.generate.latents import normal_latents
from miclip_core.world.card import write_card
from miclip_core.world.decoder import Decoder
from miclip_core.world.evaluate_generator import measure_generator
from miclip_core.world.factors import draw_factors
from miclip_core.world.latent import LENGTH, Choosing, Meaning, meaning_of
from miclip_core.world.optimise import Optimiser, Running
from miclip_core.world.recipes import GENERATOR, GeneratorRecipe
from miclip_core.world.scene import IMAGE_SIZE, chance, draw

log = logging.getLogger(__name__)


def train_generator(recipe: GeneratorRecipe) -> tuple[Decoder, dict[str, float]]:
    """The trained decoder and its last running figures; bit-exact for one recipe, machine and thread count."""
    torch.manual_seed(0)
    decoder = Decoder(**recipe.architecture)
    optimiser = Optimiser(list(decoder.parameters()), recipe.rate, recipe.steps)
    figures = Running("draw")
    choosing = Choosing(recipe.sharpness, share=0.0)
    for step in range(recipe.steps):
        latents = training_latents(recipe, range(step * recipe.batch, (step + 1) * recipe.batch))
        asked = meaning_of(latents, choosing)
        error = decoder.draw(asked) - torch.from_numpy(draw_factors(asked.factors()))
        weight = _weights(asked, recipe.near)
        loss = (weight * (error.abs() + recipe.square * error.square())).mean()
        optimiser.step(loss)
        figures.add(loss=loss, psnr=psnr(error.detach()).mean())
    return decoder.eval(), figures.latest


def training_latents(recipe: GeneratorRecipe, indices: range) -> Tensor:
    """[B, 30]: standard normal, some of them scaled down by a factor between 0 and 1."""
    latents = normal_latents(recipe.seed, indices, LENGTH)
    luck = chance(draw(recipe.seed, np.asarray(indices), LENGTH))
    scale = np.where(luck < recipe.shrunk, luck / recipe.shrunk, 1.0)
    return latents * torch.from_numpy(scale)[:, None].float()


def psnr(error_BCHW: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB of each image, [B], of errors of pixels in 0..1."""
    return -10 * error_BCHW.square().mean((1, 2, 3)).log10()


def _weights(asked: Meaning, near: float) -> Tensor:
    """[B, 1, H, W] with mean 1: pixels at the object, and right around it, count `near` times."""
    middle = torch.arange(IMAGE_SIZE) + 0.5
    x, y, reach = (part[:, None, None] for part in (asked.x, asked.y, asked.radius + 1.5))
    at_object = (middle[None, None, :] - x).square() + (middle[None, :, None] - y).square() < reach.square()
    weight = torch.where(at_object, near, 1.0)[:, None]
    return weight / weight.mean()


def save_generator(decoder: Decoder, recipe: GeneratorRecipe, directory: Path) -> None:
    """Write fp16 weights and the sizes of the layers."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_text(json.dumps(recipe.architecture, indent=2) + "\n")
    weights = {name: value.half().contiguous() for name, value in decoder.state_dict().items()}
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / WEIGHTS).chmod(0o644)


def main() -> None:
    """Train the generator on one thread, write its directory, and measure what was written into its card.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    decoder, figures = train_generator(GENERATOR)
    seconds = time.process_time()
    save_generator(decoder, GENERATOR, arguments.out)
    measured = measure_generator(arguments.out)
    write_card(arguments.out, GENERATOR, seconds, figures, measured)
    log.info("%s", measured)


if __name__ == "__main__":
    main()
