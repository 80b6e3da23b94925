"""From blocks to batches: against a plain loop over all rows, and everything that must not change what comes out."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
import pytest
import torch

from jobs.tokens.heldout import heldout
from jobs.tokens.order import Order
from jobs.tokens.sources import TokenRows
from jobs.tokens.window import Step, batches
from schemas.errors import BadTokens, TooFewTokens
from schemas.sae import StreamSettings
from tests.jobs.tokens.made_up import Memory, make_rows, plain_batches

N_IMAGES = 61
SETTINGS = StreamSettings(batch_tokens=10, buffer_batches=4, block_images=3, holdout=0.15, seed=11)
ORDER = Order(N_IMAGES, SETTINGS)
PATCH, CLS = make_rows(N_IMAGES, tokens=4), make_rows(N_IMAGES, tokens=1)


def stream(source: Memory, steps: dict[str, int], position: dict[str, list[int]] | None = None) -> list[Step]:
    return list(batches(source, ORDER, steps, position))


def batches_of(steps: Sequence[Step], site: str) -> list[np.ndarray]:
    return [step.x[site].numpy() for step in steps if site in step.x]


@pytest.mark.parametrize("rows", [PATCH, CLS], ids=["patch", "cls"])
def test_batches_are_those_of_a_plain_loop_over_all_rows(rows) -> None:
    expected = plain_batches(rows, N_IMAGES, SETTINGS, epochs=3)
    found = batches_of(stream(Memory(site=rows), {"site": len(expected)}), "site")
    assert len(found) == len(expected) >= 12
    for x, plain in zip(found, expected):
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, plain)


def test_two_sites_together_see_what_each_sees_alone_and_blocks_are_read_once_for_both() -> None:
    steps = {"patch": 40, "cls": 12}
    source = Memory(patch=PATCH, cls=CLS)
    both = stream(source, steps)
    for site, rows in (("patch", PATCH), ("cls", CLS)):
        alone = stream(Memory(**{site: rows}), {site: steps[site]})
        for x, y in zip(batches_of(both, site), batches_of(alone, site), strict=True):
            np.testing.assert_array_equal(x, y)
    shared = [ranges for ranges, sites in source.asked if sites == ("patch", "cls")]
    assert len(shared) > 5 and not any(set(sites) == {"patch"} for _, sites in source.asked[:3])


def test_sites_with_equal_rows_step_together() -> None:
    steps = stream(Memory(a=PATCH, b=PATCH), {"a": 30, "b": 30})
    assert len(steps) == 30 and all(set(step.x) == {"a", "b"} for step in steps)
    assert all(torch.equal(step.x["a"], step.x["b"]) for step in steps)  # one permutation for every site


def test_every_position_goes_on_with_what_would_have_come() -> None:
    source = Memory(patch=PATCH, cls=CLS)
    whole = stream(source, {"patch": 40, "cls": 10})
    for done in range(0, len(whole), 3):
        position = json.loads(json.dumps(whole[done].position))
        left = {site: sum(site in step.x for step in whole[done + 1 :]) for site in ("patch", "cls")}
        rest = stream(Memory(patch=PATCH, cls=CLS), left, position)
        for site in left:
            expected = batches_of(whole[done + 1 :], site)
            for x, y in zip(batches_of(rest, site), expected, strict=True):
                np.testing.assert_array_equal(x, y)
        if rest:
            assert {s: rest[-1].position[s] for s in left if left[s]} == {
                s: whole[-1].position[s] for s in left if left[s]
            }


def test_going_on_loads_one_window_and_nothing_before_it() -> None:
    whole = stream(Memory(site=PATCH), {"site": 40})
    source = Memory(site=PATCH)
    next(iter(batches(source, ORDER, {"site": 1}, whole[30].position)))
    window = whole[31].windows["site"]
    read = [some for ranges, _ in source.asked for some in ranges]
    blocks = list(zip(range(60), ORDER.blocks(window.begins)))
    expected = [(b.start, b.stop) for _, b in blocks if window.begins <= b.place < window.ends]
    assert read[: len(expected)] == expected and len(read) <= len(expected) + 1


def test_training_never_sees_a_held_out_row_and_sees_each_other_at_most_once_in_an_epoch() -> None:
    steps = [s for s in stream(Memory(site=PATCH), {"site": 60}) if s.windows["site"].begins.epoch == 0]
    seen = np.concatenate([step.x["site"][:, 0].numpy() for step in steps])
    assert len(np.unique(seen)) == len(seen)
    held = {row for start, stop in ORDER.heldout_ranges() for row in range(start, stop)}
    assert not held & {int(value) for value in seen}
    trainable = sum(len(rows) for i, rows in PATCH.items() if i not in held)
    windows = {step.windows["site"].begins for step in steps}
    assert trainable - SETTINGS.batch_tokens * len(windows) < len(seen) <= trainable


def test_windows_stay_in_the_stored_dtype_and_batches_are_float32() -> None:
    (step,) = stream(Memory(torch.float16, site=PATCH), {"site": 1})
    assert step.windows["site"].rows.dtype == torch.float16 and step.x["site"].dtype == torch.float32
    assert step.windows["site"].batches == 4 and torch.equal(step.windows["site"].batch(0), step.x["site"])


def test_a_window_is_shuffled_over_its_images() -> None:
    (step,) = stream(Memory(site=PATCH), {"site": 1})
    images = step.x["site"][:, 0].long()
    assert len(images.unique()) >= 5 and (images.diff() < 0).any()


def test_no_steps_read_nothing() -> None:
    source = Memory(site=PATCH)
    assert stream(source, {"site": 0}) == [] and source.asked == []


@pytest.mark.parametrize("rows", [make_rows(N_IMAGES, 1, without=lambda i: i % 9 != 0), {}], ids=["few", "none"])
def test_an_epoch_without_a_batch_is_an_error_that_says_what_was_found(rows) -> None:
    held = {row for start, stop in ORDER.heldout_ranges() for row in range(start, stop)}
    n_rows = len(rows.keys() - held)
    assert n_rows < 10
    with pytest.raises(
        TooFewTokens, match=f"^site: a whole epoch holds {n_rows} tokens.* batch_tokens 10; use a smaller"
    ):
        stream(Memory(site=rows), {"site": 1})


def test_few_tokens_late_in_an_epoch_are_no_error() -> None:
    """Resumed in a last window that makes no batch, the next epoch goes on."""
    settings = SETTINGS.model_copy(update={"buffer_batches": 1})
    order = Order(N_IMAGES, settings)
    last = [0, len(order.training) - 1, 0]
    step = next(iter(batches(Memory(site=CLS), order, {"site": 1}, {"site": last})))
    assert step.windows["site"].begins == (1, 0)


def test_tokens_of_another_width_are_an_error() -> None:
    mixed = {**PATCH, **{i: np.zeros((4, 5), np.float32) for i in range(30, 33)}}  # one block
    with pytest.raises(BadTokens, match=r"^site: expected tokens of width ., found .$"):
        stream(Memory(site=mixed), {"site": 60})


def test_an_error_of_the_source_arrives_where_the_batches_are_used() -> None:
    class Broken(Memory):
        def read(self, ranges: Sequence[tuple[int, int]], sites: Sequence[str]) -> Iterator[dict[str, TokenRows]]:
            raise BadTokens("no")

    with pytest.raises(BadTokens, match=r"^no$"):
        stream(Broken(site=PATCH), {"site": 1})


def test_the_next_window_is_read_while_one_is_used_and_no_more_than_that() -> None:
    blocks = count(1)
    read = threading.Event()

    class Watched(Memory):
        def read(self, ranges: Sequence[tuple[int, int]], sites: Sequence[str]) -> Iterator[dict[str, TokenRows]]:
            for found in super().read(ranges, sites):
                if next(blocks) == 8:  # a window of 40 rows takes four blocks of 3 images, 4 rows each
                    read.set()
                yield found

    source = Watched(site=PATCH)
    steps = batches(source, ORDER, {"site": 40})
    window = next(steps).windows["site"]
    assert read.wait(60)
    for _ in range(window.batches - 1):
        step = next(steps)
        assert step.windows["site"] is window
    rows_asked = sum(stop - start for ranges, _ in source.asked for start, stop in ranges)
    assert rows_asked * 4 < 3 * 40 + 4 * 3 * 4  # two windows of 40 rows, and blocks that are asked for a little early
    steps.close()


def test_held_out_blocks_come_once_with_where_every_row_is_from() -> None:
    found = list(heldout(Memory(patch=PATCH, cls=CLS), ORDER, ["patch", "cls"]))
    assert len(found) == len(ORDER.heldout) == 3
    for rows, (start, stop) in zip(found, ORDER.heldout_ranges(), strict=True):
        patch = rows["patch"]
        assert [index for index, _ in patch.images] == [i for i in range(start, stop) if i in PATCH]
        index = np.array([patch.images[i][0] for i in patch.image_of_row])
        np.testing.assert_allclose(patch.values[:, 0], index + patch.token / 100, rtol=1e-6)


def test_a_limit_is_shared_by_the_held_out_blocks() -> None:
    found = list(heldout(Memory(site=PATCH), ORDER, ["site"], limit=4))
    firsts = [ORDER.rows(block)[0] for block in ORDER.heldout]
    wanted = [[firsts[0], firsts[0] + 1], [firsts[1]], [firsts[2]]]
    assert [[i for i, _ in rows["site"].images] for rows in found] == [
        [i for i in some if i in PATCH] for some in wanted
    ]


def test_held_out_blocks_without_a_token_are_an_error() -> None:
    held = {row for start, stop in ORDER.heldout_ranges() for row in range(start, stop)}
    rows = {i: some for i, some in PATCH.items() if i not in held}
    with pytest.raises(TooFewTokens, match=r"^site: 3 held-out blocks of 3 images hold no token.*larger holdout"):
        list(heldout(Memory(site=rows), ORDER, ["site"]))
