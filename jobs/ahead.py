"""Work done in threads a little ahead of the one who uses it, handed over in the original order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
_END = object()


def in_order(
    do: Callable[[Item], Made],
    items: Iterable[Item],
    threads: int,
    ahead: int,
    cost: Callable[[Item], int] = lambda item: 0,
    budget: int = 0,
) -> Iterator[Made]:
    """`do(item)` for every item, in the order of `items`, computed in `threads` threads before it is asked for.

    At most `ahead` results wait or are being made, and together they `cost` at most `budget` (say, bytes) unless one
    alone costs more. An exception of `do` is raised in its item's place; nothing after it is handed over.
    """
    waiting: deque[tuple[Future[Made], int]] = deque()
    spent = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="miclip-ahead") as pool:
        try:
            for item in items:
                price = cost(item)
                while waiting and (len(waiting) >= ahead or spent + price > budget > 0):
                    future, paid = waiting.popleft()
                    spent -= paid
                    yield future.result()
                waiting.append((pool.submit(do, item), price))
                spent += price
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each made in a thread of its own while the one before it is used; one waits at most.

    Whoever stops early waits for the item that is being made.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="miclip-next") as pool:
        coming = pool.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, items, _END)
            yield item  # type: ignore[misc]
            del item
