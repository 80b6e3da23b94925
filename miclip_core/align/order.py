"""Which images train a neuron encoder, which are held out, and in which order they come."""

from __future__ import annotations

import numpy as np

from miclip_core.shuffle import permute
from schemas.align import AlignSettings


def split_rows(n: int, settings: AlignSettings) -> tuple[np.ndarray, np.ndarray]:
    """The images of n that train and those that are held out, int64 ascending; none of the latter without a patience."""
    held = 0 if settings.patience is None else max(1, int(n * settings.holdout))
    order = permute(n, settings.seed, "align", "held out")
    return np.sort(order[held:]), np.sort(order[:held])


def batch_order(n: int, settings: AlignSettings, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch over n training images as their places, int64: a function of seed and epoch alone.

    The last one is shorter where n is no multiple of the batch, or is left out with `drop_last`.
    """
    order = permute(n, settings.seed, "align", epoch)
    whole = n - n % settings.batch if settings.drop_last else n
    return [order[first : min(first + settings.batch, whole)] for first in range(0, whole, settings.batch)]
