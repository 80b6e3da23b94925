"""Random things of many, the same everywhere and for ever."""

from __future__ import annotations

import numpy as np


def draw_distinct(n: int, count: int, *seed: int) -> list[int]:
    """`count` different numbers below n, or all of them if there are no more; a pure function of its arguments.

    seed: numbers from 0 on. The generator's raw bits are used, which numpy promises to keep; it costs nothing to draw few
    of very many.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed))
    found: dict[int, None] = {}
    while len(found) < min(n, count):
        raw = int(bits.random_raw(1)[0]) >> 32
        found[raw * n >> 32] = None
    return list(found)
