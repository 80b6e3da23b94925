"""Permutations by hashing: the same on every machine and with every version of every library."""

from __future__ import annotations

import hashlib

import numpy as np


def permute(n: int, *seed: int | str) -> np.ndarray:
    """A permutation of n things, int64 [n], as a pure function of its arguments.

    Thing i gets the hash splitmix64(sha256(seed) + i), after Steele, Lea and Flood (2014); they are sorted by it.
    """
    text = ":".join(map(str, seed))
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        x = np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.argsort(x, kind="stable")
