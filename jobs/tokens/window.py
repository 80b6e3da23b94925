"""The one iterator from a source to batches: windows of shuffled tokens, read one ahead, and where to go on later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jobs.ahead import one_ahead
from jobs.tokens.order import FIRST, Block, Order, Pace, Place
from jobs.tokens.sources import Source, TokenRows
from miclip_core.shuffle import permute
from schemas.errors import BadTokens, TooFewTokens
from schemas.sae import StreamSettings

Position = Mapping[str, Sequence[int]]
"""Site -> epoch, block at which its window begins, batches of that window that are behind; plain JSON."""


@dataclass(frozen=True, eq=False)
class Window:
    """The tokens of consecutive blocks at one site, shuffled and cut to whole batches; those left over are left out.

    rows: [batches * batch_tokens, d] in the stored dtype. begins: its first block. ends: the first block of the next.
    """

    rows: Tensor
    begins: Place
    ends: Place
    batch_tokens: int

    @property
    def batches(self) -> int:
        """Batches in it."""
        return len(self.rows) // self.batch_tokens

    def batch(self, i: int) -> Tensor:
        """Batch i, float32 [batch_tokens, d]."""
        return self.rows[i * self.batch_tokens : (i + 1) * self.batch_tokens].float()


class Step(NamedTuple):
    """One batch of each site that has one now.

    x: site -> float32 [batch_tokens, d]. windows: what each was cut from; the first serves for statistics. position:
    where every site goes on after this step.
    """

    x: dict[str, Tensor]
    windows: dict[str, Window]
    position: dict[str, list[int]]


def batches(source: Source, order: Order, steps: Mapping[str, int], position: Position | None = None) -> Iterator[Step]:
    """`steps[site]` batches of every site, from a position or the beginning; the next window is read in a thread.

    A site sees windows of its own: consecutive training blocks until they hold `buffer_batches` batches or the epoch
    ends, shuffled by (seed, epoch, first block). So what it sees depends neither on the other sites nor on where it
    started. Blocks are read once for all sites that need them, and sites whose windows end at the same block step
    together; a site with fewer tokens per image waits longer for a window and steps on alone when others are done.
    At most three windows per site are in memory: one in use, one ready, one being filled or shuffled.

    Raises:
        TooFewTokens: a whole epoch of a site makes no batch.
    """
    start = {site: tuple(map(int, (position or {}).get(site, (*FIRST, 0)))) for site in steps}
    current = {site: list(place) for site, place in start.items()}
    filling = {
        site: _Filling(site, order.settings, Place(epoch, block), done, steps[site])
        for site, (epoch, block, done) in start.items()
    }
    for ready in one_ahead(_windows(source, order, filling)):
        for i in range(max(len(numbers) for _, numbers in ready.values())):
            now = {site: (window, numbers[i]) for site, (window, numbers) in ready.items() if i < len(numbers)}
            for site, (window, number) in now.items():
                used_up = number + 1 == window.batches
                current[site] = [*window.ends, 0] if used_up else [*window.begins, number + 1]
            yield Step(
                {site: window.batch(number) for site, (window, number) in now.items()},
                {site: window for site, (window, _) in now.items()},
                {site: list(place) for site, place in current.items()},
            )


_Ready = tuple[Window, range]
"""A window and the numbers of its batches that are wanted."""


def _windows(source: Source, order: Order, filling: Mapping[str, _Filling]) -> Iterator[dict[str, _Ready]]:
    """Windows as they get full: those of all sites that end with the same block together."""
    for block, found in _blocks(source, order, filling):
        full = {site: filling[site].add(block, found.pop(site)) for site in list(found)}
        ready = {site: some for site, some in full.items() if some is not None}
        if ready:
            yield ready


def _blocks(
    source: Source, order: Order, filling: Mapping[str, _Filling]
) -> Iterator[tuple[Block, dict[str, TokenRows]]]:
    """Training blocks with their rows at every site that still needs them, until none does.

    About as many blocks are asked for at once as the next window needs, so that a source can read what they share once.
    """
    blocks = order.blocks(min((some.begins for some in filling.values() if some.wanted), default=FIRST))
    while unfinished := [some for some in filling.values() if some.wanted]:
        coming = _take(blocks, min(some.pace.blocks(some.missing) for some in unfinished))
        for sites, group in groupby(coming, lambda block: [s.site for s in unfinished if s.begins <= block.place]):
            together = list(group)
            if sites:
                found = source.read([(block.start, block.stop) for block in together], sites)
                yield from zip(together, found, strict=True)


def _take(blocks: Iterator[Block], n: int) -> Iterator[Block]:
    """The next n blocks of an endless sequence, fewer at the end of an epoch."""
    for block in islice(blocks, n):
        yield block
        if block.ends_epoch:
            return


class _Filling:
    """The window of one site that is being filled, and how many batches the site still wants."""

    def __init__(self, site: str, settings: StreamSettings, begins: Place, done: int, wanted: int) -> None:
        self.site = site
        self.pace = Pace()
        self._settings = settings
        self.begins = begins
        self._done = done
        self.wanted = wanted
        self._values: list[Tensor] = []
        self._rows = 0
        self._epoch = _Epoch(whole=begins.block == 0)

    def add(self, block: Block, rows: TokenRows) -> _Ready | None:
        """Take the rows of one block; returns the window if it is full and has batches that are wanted."""
        if self.wanted == 0:
            return None
        self.pace.note(len(rows.values))
        if len(rows.values):
            self._values.append(rows.values)
            self._rows += len(rows.values)
        if self.missing > 0 and not block.ends_epoch:
            return None
        epoch, number = block.place
        ends = Place(epoch + 1, 0) if block.ends_epoch else Place(epoch, number + 1)
        window = Window(self._shuffle(), self.begins, ends, self._settings.batch_tokens)
        self._count(window, block.ends_epoch)
        numbers = range(self._done, min(window.batches, self._done + self.wanted))
        self.begins, self._done = ends, 0
        self.wanted -= len(numbers)
        return (window, numbers) if len(numbers) else None

    @property
    def missing(self) -> int:
        """Rows that the window still needs."""
        return self._settings.buffer_batches * self._settings.batch_tokens - self._rows

    def _shuffle(self) -> Tensor:
        """Rows in random order, as many as fill batches; blocks are let go one by one."""
        chunks, self._values = self._values[::-1], []
        n_rows, self._rows = self._rows, 0
        self._epoch.rows += n_rows
        kept = n_rows - n_rows % self._settings.batch_tokens
        if kept == 0:
            return torch.empty(0, 0)
        target = np.empty(n_rows, np.int64)
        target[permute(n_rows, self._settings.seed, "window", *self.begins)] = np.arange(n_rows)
        shuffled = torch.empty(kept, chunks[-1].shape[1], dtype=chunks[-1].dtype)
        first = 0
        while chunks:
            chunk = chunks.pop()
            if chunk.shape[1] != shuffled.shape[1]:
                raise BadTokens(f"{self.site}: expected tokens of width {shuffled.shape[1]}, found {chunk.shape[1]}")
            to = torch.from_numpy(target[first : first + len(chunk)])
            first += len(chunk)
            fits = to < kept
            shuffled[to[fits]] = chunk[fits]
        return shuffled

    def _count(self, window: Window, ends_epoch: bool) -> None:
        """Refuse to go through the images for ever without a batch."""
        self._epoch.batches += window.batches
        if not ends_epoch:
            return
        if self._epoch.whole and self._epoch.batches == 0:
            raise TooFewTokens(
                f"{self.site}: a whole epoch holds {self._epoch.rows} tokens, which make no batch of batch_tokens "
                f"{self._settings.batch_tokens}; use a smaller batch_tokens, more images or a site with more positions"
            )
        self._epoch = _Epoch(whole=True)


@dataclass
class _Epoch:
    """What a site has seen of the epoch it is in, and whether it saw it from the beginning."""

    whole: bool
    rows: int = 0
    batches: int = 0
