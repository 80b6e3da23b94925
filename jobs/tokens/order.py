"""The order in which the rows of an index are seen: blocks, held-out blocks and epochs, as pure functions of a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from miclip_core.shuffle import permute
from schemas.errors import TooFewImages
from schemas.sae import StreamSettings


class Place(NamedTuple):
    """Where in the endless sequence of training blocks: the epoch, and how many of its blocks lie behind."""

    epoch: int
    block: int


FIRST = Place(0, 0)


class Block(NamedTuple):
    """Rows [start, stop) of the index, and their place in the sequence."""

    place: Place
    start: int
    stop: int
    ends_epoch: bool


@dataclass(frozen=True)
class Order:
    """Which rows of an index are held out, and in what order the others are read, epoch after epoch.

    n_rows: rows of the index, duplicates and bad images included, so that the order is known before any is read.

    Raises:
        TooFewImages: they make fewer than two blocks, one to hold out and one to train on.
    """

    n_rows: int
    settings: StreamSettings

    def __post_init__(self) -> None:
        n_blocks = self.n_blocks
        if n_blocks < 2:
            raise TooFewImages(
                f"{self.n_rows} images make {n_blocks} block{'' if n_blocks == 1 else 's'} of {self.settings.block_images}; expected at least 2, one to "
                "hold out and one to train on; use more images or a smaller block_images"
            )

    @property
    def n_blocks(self) -> int:
        """Blocks in all, held out or not."""
        return -(-self.n_rows // self.settings.block_images)

    @property
    def n_heldout(self) -> int:
        """How many of them are held out."""
        return min(max(1, round(self.settings.holdout * self.n_blocks)), self.n_blocks - 1)

    @cached_property
    def heldout(self) -> tuple[int, ...]:
        """Numbers of the held-out blocks, in random order, so that the first few are a fair sample of all."""
        return tuple(self._shuffled()[: self.n_heldout].tolist())

    @cached_property
    def training(self) -> tuple[int, ...]:
        """Numbers of all others, ascending."""
        return tuple(np.sort(self._shuffled()[self.n_heldout :]).tolist())

    def _shuffled(self) -> np.ndarray:
        return permute(self.n_blocks, self.settings.seed, "heldout")

    def rows(self, block: int) -> tuple[int, int]:
        """Rows [start, stop) of a block; the last block may be short."""
        start = block * self.settings.block_images
        return start, min(start + self.settings.block_images, self.n_rows)

    def heldout_ranges(self, limit: int | None = None) -> list[tuple[int, int]]:
        """Rows [start, stop) of the held-out blocks in their random order: whole, or at most `limit` rows of all together.

        With a limit every block gives its first few: neighbours are often alike (an index sorted by class), so a few
        whole blocks would be a sample of a few classes.
        """
        ranges = [self.rows(block) for block in self.heldout]
        if limit is None or limit >= len(ranges) * self.settings.block_images:
            return ranges
        share, more = divmod(limit, len(ranges))
        wanted = [share + (i < more) for i in range(len(ranges))]
        return [(start, min(stop, start + n)) for (start, stop), n in zip(ranges, wanted) if n]

    def blocks(self, place: Place = FIRST) -> Iterator[Block]:
        """The training blocks from a place on, without end: every epoch has all of them, in an order of its own."""
        epoch, first = place
        while True:
            order = permute(len(self.training), self.settings.seed, "epoch", epoch)
            for i in range(first, len(order)):
                start, stop = self.rows(self.training[order[i]])
                yield Block(Place(epoch, i), start, stop, ends_epoch=i + 1 == len(order))
            epoch, first = epoch + 1, 0


class Pace:
    """How many tokens a block gives, as far as is known: it decides how much is read at once, never what."""

    def __init__(self) -> None:
        self._blocks = 0
        self._tokens = 0

    def note(self, tokens: int) -> None:
        """One more block gave so many."""
        self._blocks += 1
        self._tokens += tokens

    def blocks(self, tokens: int) -> int:
        """About as many blocks as give so many; one while nothing is known."""
        return max(1, -(-tokens * self._blocks // self._tokens)) if self._tokens else 1
