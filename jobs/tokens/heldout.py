"""The tokens that no training sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from jobs.ahead import one_ahead
from jobs.tokens.order import Order, Pace
from jobs.tokens.sources import Source, TokenRows
from schemas.errors import TooFewTokens


def heldout(
    source: Source, order: Order, sites: Sequence[str], limit: int | None = None
) -> Iterator[dict[str, TokenRows]]:
    """The held-out blocks one after another in random order; the next are read in a thread.

    limit: only so many rows of the index, a few of every block.

    Raises:
        TooFewTokens: at the end, if they gave no token of a site.
    """
    ranges = order.heldout_ranges(limit)
    paces = {site: Pace() for site in sites}
    found = dict.fromkeys(sites, 0)
    for rows in one_ahead(_read(source, order, ranges, paces)):
        for site in sites:
            found[site] += len(rows[site].values)
        yield rows
    if empty := [site for site, tokens in found.items() if tokens == 0]:
        raise TooFewTokens(
            f"{', '.join(empty)}: {len(ranges)} held-out blocks of {order.settings.block_images} images hold no token; "
            "expected at least one; use a larger holdout or another order_seed, or see bad_inputs for what was set aside"
        )


def _read(
    source: Source, order: Order, ranges: Sequence[tuple[int, int]], paces: dict[str, Pace]
) -> Iterator[dict[str, TokenRows]]:
    """About a window at once, so that a source can read once what blocks share."""
    at_once = order.settings.buffer_batches * order.settings.batch_tokens
    waiting = iter(ranges)
    while some := list(islice(waiting, min(pace.blocks(at_once) for pace in paces.values()))):
        for rows in source.read(some, list(paces)):
            for site, pace in paces.items():
                pace.note(len(rows[site].values))
            yield rows
