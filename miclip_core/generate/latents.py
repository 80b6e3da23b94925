"""The latent of an image: a pure function of a seed and the image's number, so that no batch or shard changes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from miclip_core.world.scene import chance, draw


def normal_latents(seed: int, indices: Sequence[int] | np.ndarray, length: int) -> Tensor:
    """Standard normal latents [B, length] float32 on the CPU: number j of image i is of (seed, i, j) alone."""
    index = np.asarray(indices, np.int64).reshape(-1)
    bits = [draw(seed, index, field) for field in range(length)]
    # A draw is a multiple of 2^-53 from 0 on; half a step keeps it inside the open interval, where the normal is finite.
    uniform_BZ = np.stack([chance(column) for column in bits], 1) + 2.0**-54
    return torch.special.ndtri(torch.from_numpy(uniform_BZ)).float()
