"""Which rows of an index are seen together, and how many of them are asked for at once; loads no torch."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.plans import Shard

READ_BYTES = 64 << 20
"""Numbers that are asked for at once, as float32; or those of the images that are seen together, if these are more."""


def row_blocks(shard: Shard, together: int, numbers_per_image: int) -> Iterator[list[tuple[int, int]]]:
    """Ranges [first, last) of `together` rows, counted from the first row of a shard, in groups to be asked for at once.

    Shards begin at multiples of `together`, so what is seen together does not depend on how the index is cut into them.
    """
    at_once = max(1, READ_BYTES // (4 * together * numbers_per_image)) * together
    for first in range(shard.start, shard.stop, at_once):
        last = min(first + at_once, shard.stop)
        yield [(start, min(start + together, last)) for start in range(first, last, together)]
