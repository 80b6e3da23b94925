"""Tokens in memory for tests: who asked for what, and the plain loop that says what must come out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from jobs.tokens.sources import TokenRows
from schemas.sae import StreamSettings

Rows = dict[int, np.ndarray]
"""Index row of an image -> its tokens [n, d]; a row that is missing is a duplicate or a bad image."""


def make_rows(
    n_images: int, tokens: int, width: int = 3, without: Callable[[int], bool] = lambda i: i % 7 == 3
) -> Rows:
    """The token t of image i at column c is i + t / 100 + c / 1000, so that every number tells where it is from."""
    column = np.arange(width) / 1000
    return {
        i: np.array([i + t / 100 + column for t in range(tokens)], np.float32).reshape(tokens, width)
        for i in range(n_images)
        if not without(i)
    }


class Memory:
    """A source over such rows; `asked` keeps every call."""

    def __init__(self, dtype: torch.dtype = torch.float32, **sites: Rows) -> None:
        self.asked: list[tuple[tuple[tuple[int, int], ...], tuple[str, ...]]] = []
        self._sites, self._dtype = sites, dtype

    def read(self, ranges: Sequence[tuple[int, int]], sites: Sequence[str]) -> Iterator[dict[str, TokenRows]]:
        self.asked.append((tuple(ranges), tuple(sites)))
        for start, stop in ranges:
            yield {site: self._rows(self._sites[site], start, stop) for site in sites}

    def _rows(self, rows: Rows, start: int, stop: int) -> TokenRows:
        there = [i for i in range(start, stop) if i in rows]
        values = np.concatenate([rows[i] for i in there]) if there else np.empty((0, 0), np.float32)
        return TokenRows(
            torch.from_numpy(values).to(self._dtype),
            np.repeat(np.arange(len(there)), [len(rows[i]) for i in there]).astype(np.int32),
            np.concatenate([np.arange(len(rows[i])) for i in there] or [[]]).astype(np.int32),
            tuple((i, f"{i:032x}") for i in there),
        )


# ---------------------------------------------------------------- the plain loop


def _shuffled(n: int, *seed: object) -> list[int]:
    """Numbers 0 .. n - 1 sorted by splitmix64, in plain integers."""
    key = int.from_bytes(hashlib.sha256(":".join(map(str, seed)).encode()).digest()[:8], "little")

    def mix(i: int) -> int:
        x = (i * 0x9E3779B97F4A7C15 + key) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    return sorted(range(n), key=mix)


def plain_batches(rows: Rows, n_images: int, settings: StreamSettings, epochs: int) -> list[np.ndarray]:
    """Every batch of so many epochs, row by row from the words of the contract, each [batch_tokens, d]."""
    n_blocks = -(-n_images // settings.block_images)
    mixed = _shuffled(n_blocks, settings.seed, "heldout")
    n_heldout = max(1, round(settings.holdout * n_blocks))
    training = sorted(mixed[n_heldout:])
    found = []
    for epoch in range(epochs):
        order = [training[i] for i in _shuffled(len(training), settings.seed, "epoch", epoch)]
        window: list[np.ndarray] = []
        first = 0
        for i, block in enumerate(order):
            for image in range(block * settings.block_images, min((block + 1) * settings.block_images, n_images)):
                window += list(rows.get(image, []))
            if len(window) >= settings.buffer_batches * settings.batch_tokens or i + 1 == len(order):
                mixed_rows = [window[j] for j in _shuffled(len(window), settings.seed, "window", epoch, first)]
                for j in range(len(mixed_rows) // settings.batch_tokens):
                    found.append(np.array(mixed_rows[j * settings.batch_tokens : (j + 1) * settings.batch_tokens]))
                window, first = [], i + 1
    return found
