"""What all stores share: asking many small questions at once."""

from __future__ import annotations

import threading

import pytest

from cluster.stores.base import HANDFUL, ask_many


@pytest.mark.parametrize("n", [0, 1, 15, 16 * 4 * HANDFUL + 3])
def test_every_question_is_answered_once_and_in_order(n: int) -> None:
    asked: list[int] = []

    def ask(i: int) -> int:
        asked.append(i)
        return -i

    assert list(ask_many(ask, iter(range(n)))) == [(i, -i) for i in range(n)]
    assert sorted(asked) == list(range(n))


def test_a_few_questions_are_asked_side_by_side() -> None:
    """Sixteen wait for each other, so no thread was given two of them."""
    all_there = threading.Barrier(16, timeout=20)
    assert len(list(ask_many(lambda i: all_there.wait(), range(16)))) == 16


def test_many_questions_go_out_by_handfuls() -> None:
    threads = [ident for _, ident in ask_many(lambda i: threading.get_ident(), range(16 * 4 * 10))]
    assert all(len(set(threads[i : i + 10])) == 1 for i in range(0, len(threads), 10))


def test_what_a_question_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(ask_many(lambda i: 1 / i, range(-5, 5)))
