"""The generator's trainer: same recipe, same weights; what it draws comes closer to the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from miclip_core.generate.latents import normal_latents
from miclip_core.generate.seeds import MOST_SEEDS, START_SEEDS
from miclip_core.world.evaluate_generator import measure_generator
from miclip_core.world.latent import LENGTH
from miclip_core.world.recipes import GENERATOR
from miclip_core.world.train_generator import psnr, save_generator, train_generator, training_latents

SMALL = replace(GENERATOR, coarse=(8,), fine=(24,), style=16, memory=2, steps=150, batch=4, rate=1e-2)


def test_training_is_reproducible_and_the_saved_generator_draws_better_than_at_first(tmp_path):
    first, again = (train_generator(replace(SMALL, steps=10))[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    decoder, figures = train_generator(SMALL)
    assert figures["draw_psnr"] > 10
    noise = {}
    for name, trained in (("first", train_generator(replace(SMALL, steps=1))[0]), ("last", decoder)):
        save_generator(trained, SMALL, tmp_path / name)
        noise[name] = measure_generator(tmp_path / name, 40)["psnr"]["mean"]
    assert noise["last"] > noise["first"] + 3


def test_training_latents_are_no_latents_of_an_image_set_and_some_are_scaled_down():
    latents = training_latents(GENERATOR, range(2000))
    assert MOST_SEEDS <= GENERATOR.seed < START_SEEDS
    whole = normal_latents(GENERATOR.seed, range(2000), LENGTH)
    scale = (latents / whole).median(1).values
    assert (scale < 1).float().mean() == pytest.approx(GENERATOR.shrunk, abs=0.03)
    torch.testing.assert_close(latents, scale[:, None] * whole, atol=1e-5, rtol=1e-4)
    assert torch.equal(training_latents(GENERATOR, range(5, 9)), latents[5:9])


def test_psnr_of_a_known_error():
    error = torch.zeros(2, 3, 64, 64)
    error[0] += 0.1
    error[1, :, :32] += 0.01
    np.testing.assert_allclose(psnr(error), [20, 40 + 10 * np.log10(2)], rtol=1e-5)
