"""Blocks, held-out blocks and epochs."""

from __future__ import annotations

from itertools import islice

import pytest

from jobs.tokens.order import Order, Pace, Place
from schemas.errors import TooFewImages
from schemas.sae import StreamSettings


def make(n_rows: int, block_images: int = 10, holdout: float = 0.2, seed: int = 0) -> Order:
    settings = StreamSettings(batch_tokens=2, buffer_batches=1, block_images=block_images, holdout=holdout, seed=seed)
    return Order(n_rows, settings)


def test_every_row_is_in_one_block_that_is_either_trained_on_or_held_out() -> None:
    order = make(95)
    assert len(order.heldout) == 2 and len(order.training) == 8
    blocks = sorted(order.heldout + order.training)
    assert [row for block in blocks for row in range(*order.rows(block))] == list(range(95))
    assert order.rows(9) == (90, 95)


@pytest.mark.parametrize(("holdout", "expected"), [(0.01, 1), (0.2, 2), (0.26, 3), (0.99, 9)])
def test_the_share_of_held_out_blocks_is_rounded_but_leaves_one_for_each_side(holdout: float, expected: int) -> None:
    assert len(make(100, holdout=holdout).heldout) == expected


@pytest.mark.parametrize("n_rows", [0, 1, 10])
def test_one_block_cannot_be_both_trained_on_and_held_out(n_rows: int) -> None:
    with pytest.raises(
        TooFewImages, match=f"^{n_rows} images make . blocks? of 10; expected at least 2.*smaller block_"
    ):
        make(n_rows)


def test_two_blocks_are_enough() -> None:
    order = make(11)
    assert len(order.heldout) == 1 == len(order.training)


def test_every_epoch_has_all_training_blocks_in_an_order_of_its_own() -> None:
    order = make(200)
    n = len(order.training)
    found = list(islice(order.blocks(), 3 * n))
    epochs = [[block.start // 10 for block in found[i * n : (i + 1) * n]] for i in range(3)]
    assert all(sorted(epoch) == list(order.training) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0] and epochs[0] != sorted(epochs[0])
    assert [block.place for block in found[n - 1 : n + 1]] == [Place(0, n - 1), Place(1, 0)]
    assert [i for i, block in enumerate(found) if block.ends_epoch] == [n - 1, 2 * n - 1, 3 * n - 1]


def test_the_sequence_can_be_entered_anywhere() -> None:
    order = make(200)
    all_of_them = list(islice(order.blocks(), 40))
    for skipped in (1, 15, 16, 17, 30):
        entered = list(islice(order.blocks(all_of_them[skipped].place), 40 - skipped))
        assert entered == all_of_them[skipped:]


def test_another_seed_holds_out_other_blocks() -> None:
    assert make(1000, seed=0).heldout != make(1000, seed=1).heldout
    assert make(1000, seed=0) == make(1000, seed=0)


def test_a_limit_takes_a_few_rows_of_every_held_out_block() -> None:
    """Of an index sorted by class, whole blocks would be a sample of few classes."""
    order = make(1000, holdout=0.5)
    assert order.heldout != tuple(sorted(order.heldout))
    starts = [order.rows(block)[0] for block in order.heldout]
    assert len(starts) == 50
    assert order.heldout_ranges(125) == [(s, s + 3) for s in starts[:25]] + [(s, s + 2) for s in starts[25:]]
    assert order.heldout_ranges(7) == [(s, s + 1) for s in starts[:7]]
    assert order.heldout_ranges() == order.heldout_ranges(500) == [(s, s + 10) for s in starts]


def test_a_pace_is_one_block_until_it_is_known() -> None:
    pace = Pace()
    assert pace.blocks(1000) == 1
    pace.note(0)
    assert pace.blocks(1000) == 1
    pace.note(60)
    assert pace.blocks(1000) == 34 and pace.blocks(0) == 1
