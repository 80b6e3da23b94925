"""Batches of an epoch and held-out images: pure functions of the seed, every image once."""

from __future__ import annotations

import numpy as np

from miclip_core.align.order import batch_order, split_rows
from tests.miclip_core.align.runs import settings


def test_every_image_comes_once_per_epoch_and_epochs_differ() -> None:
    batches = batch_order(100, settings(), 0)
    assert [len(rows) for rows in batches] == [32, 32, 32, 4]
    assert sorted(np.concatenate(batches).tolist()) == list(range(100))
    again, next_epoch, other_seed = (
        batch_order(100, settings(), 0),
        batch_order(100, settings(), 1),
        batch_order(100, settings(seed=4), 0),
    )
    assert np.array_equal(batches[0], again[0])
    assert not np.array_equal(batches[0], next_epoch[0])
    assert not np.array_equal(batches[0], other_seed[0])


def test_the_last_images_can_be_left_out_so_that_all_batches_are_whole() -> None:
    assert [len(rows) for rows in batch_order(100, settings(drop_last=True), 0)] == [32, 32, 32]
    assert [len(rows) for rows in batch_order(96, settings(), 0)] == [32, 32, 32]


def test_the_order_does_not_follow_the_settings_that_do_not_concern_it() -> None:
    one, other = batch_order(100, settings(), 0), batch_order(100, settings(w_in=0.0, lr=0.5, bias=True), 0)
    assert np.array_equal(np.concatenate(one), np.concatenate(other))


def test_with_a_patience_a_share_is_held_out_and_else_none() -> None:
    training, held = split_rows(50, settings(patience=1, holdout=0.2))
    assert len(held) == 10
    assert sorted([*training, *held]) == list(range(50))
    training, held = split_rows(50, settings())
    assert training.tolist() == list(range(50))
    assert held.tolist() == []
