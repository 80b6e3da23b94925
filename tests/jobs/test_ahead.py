"""Work done ahead in threads: the order, the bounds and the errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from jobs.ahead import in_order, one_ahead


def test_results_come_in_the_order_of_items_whatever_takes_longest() -> None:
    def slow_first(i: int) -> int:
        time.sleep(0.02 if i % 4 == 0 else 0)
        return i * i

    assert list(in_order(slow_first, range(20), threads=4, ahead=8)) == [i * i for i in range(20)]
    assert list(in_order(slow_first, [], threads=4, ahead=8)) == []


def test_no_more_than_the_given_number_is_done_ahead() -> None:
    done: list[int] = []
    results = in_order(lambda i: done.append(i), range(100), threads=4, ahead=5)
    next(results)
    deadline = time.monotonic() + 240
    while len(done) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # more would come now
    assert sorted(done) == [0, 1, 2, 3, 4]
    results.close()  # type: ignore[attr-defined]
    assert len(done) <= 6


def test_what_waits_costs_no_more_than_the_budget_unless_one_item_does() -> None:
    waiting = peak = 0
    lock = threading.Lock()

    def make(cost: int) -> int:
        nonlocal waiting, peak
        with lock:
            waiting += cost
            peak = max(peak, waiting)
        return cost

    costs = [3, 3, 3, 50, 3, 3, 3, 3]
    for cost in in_order(make, costs, threads=4, ahead=100, cost=lambda cost: cost, budget=10):
        with lock:
            waiting -= cost
    assert 50 <= peak <= 50 + 9  # the large one, and at most what was just handed over before it


def test_an_error_is_raised_in_its_place() -> None:
    def fails_at_three(i: int) -> int:
        if i == 3:
            raise ValueError("three")
        return i

    results = in_order(fails_at_three, range(10), threads=4, ahead=8)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_one_ahead_makes_the_next_item_while_one_is_used_and_no_more() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for i in range(5):
            made.append(i)
            yield i

    found = []
    for i in one_ahead(make()):
        found.append(i)
        time.sleep(0.05)
        assert made == list(range(min(i + 2, 5)))
    assert found == [0, 1, 2, 3, 4]


def test_one_ahead_raises_an_error_in_its_place() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("two")

    items = one_ahead(make())
    assert next(items) == 1
    with pytest.raises(ValueError, match="two"):
        next(items)


def test_one_ahead_of_nothing_is_nothing() -> None:
    assert list(one_ahead(iter(()))) == []
