"""Which seeds latents are drawn from, in ranges that do not meet: no purpose draws what another has drawn; loads no torch."""

from __future__ import annotations

MOST_SEEDS = 2**32
"""Image sets have seeds below."""
TRAINING_SEED = 2**40
"""The generator that ships was trained on latents of this one."""
START_SEEDS = 2**48
"""Random starts of inversions have seeds from here on: no image of a set begins at its own latent by chance."""
