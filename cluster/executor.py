"""The one way work is executed: an executor takes a board and yields outcomes; and the simplest of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from cluster.board import Board
from cluster.shard_host import ShardHost
from cluster.works import Need, Outcome
from schemas.errors import Infeasible, Interrupted

FIRST_REST = 0.5
"""Seconds before a shard that failed is tried for the second time: what passes needs time to pass."""
REST_GROWTH = 4.0


class StopFlag:
    """Set when a run is to end before its time; executors look at it between tasks, listeners hear of it at once."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._error: type[Interrupted] = Interrupted
        self._listeners: list[Callable[[Interrupted], None]] = []
        self.asked = 0.0
        """When it was set, by `time.monotonic()`."""

    @property
    def error(self) -> Interrupted | None:
        """What `check` raises; None if nobody asked for a stop."""
        if self.reason is None:
            return None
        return self._error(f"stopped ({self.reason}); finished shards are kept, the same command goes on from here")

    def listen(self, listener: Callable[[Interrupted], None]) -> None:
        """Call this once when a stop is asked for, in the thread that asks, or now if it was; with what `check` raises."""
        self._listeners.append(listener)
        if (stopped := self.error) is not None:
            listener(stopped)

    def stop(self, reason: str, error: type[Interrupted] = Interrupted) -> None:
        """Ask for a clean end; who asks first says why. Listeners may write to the store: never call it in a signal handler."""
        if self.reason is not None:
            return
        self.asked = time.monotonic()
        self._error = error
        self.reason = reason
        if (stopped := self.error) is not None:
            for listener in self._listeners:
                listener(stopped)

    def check(self) -> None:
        """Raise if a stop was asked for.

        Raises:
            Interrupted, Cancelled: with the reason.
        """
        if (error := self.error) is not None:
            raise error


class Executor(Protocol):
    """Runs tasks somewhere. The board decides what may start and what is tried again; the executor only where."""

    def check(self, works: Sequence[Need]) -> None:
        """Refuse before any work what can never run here. Raises Infeasible."""
        ...

    def run(self, board: Board, stop: StopFlag) -> Iterator[Outcome]:
        """Hand out what is ready until the board is finished; yields one outcome for each task handed out.

        The caller records each outcome on the board before it asks for the next. Raises Interrupted when `stop` is
        set and ClusterUnreachable when the place itself is gone.
        """
        ...

    def close(self) -> None:
        """Release workers."""
        ...


class Rests:
    """The clock between a board and its workers: what failed is tried again after a pause, and a longer one each time."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, int], float] = {}

    def end(self, board: Board) -> None:
        """Wake the tasks that have rested long enough; call it often."""
        now = time.monotonic()
        for task in list(board.resting.values()):
            until = self._until.setdefault(
                (task.id, task.attempt), now + FIRST_REST * REST_GROWTH ** (task.attempt - 1)
            )
            if now >= until:
                board.wake(task)


class SerialExecutor:
    """One task after another in this process: for debugging, notebooks and tests."""

    def __init__(self, store_uri: str) -> None:
        self._host = ShardHost(store_uri)

    def check(self, works: Sequence[Need]) -> None:
        """GPUs and gangs need an executor with processes of their own."""
        for work in works:
            if work.gang > 1:
                raise Infeasible(f"{work.title}: a gang of {work.gang} workers needs --executor ray, found serial")
            if work.resources.gpus > 0:
                raise Infeasible(
                    f"{work.title}: resources.gpus is {work.resources.gpus}, the serial executor has none; "
                    "use --executor ray or set resources.gpus to 0"
                )

    def run(self, board: Board, stop: StopFlag) -> Iterator[Outcome]:
        """Tasks in board order."""
        rests = Rests()
        while not board.finished:
            stop.check()
            rests.end(board)
            task = next(iter(board.ready()), None)
            if task is None:  # all that is left rests
                time.sleep(0.05)
                continue
            board.hand_out(task)
            yield self._host.run(board.works[task.work], task)

    def close(self) -> None:
        """Nothing to release."""


class DeferredExecutor:
    """Makes its executor when there is something to run: a run that finds everything published starts no cluster."""

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make = make
        self._made: Executor | None = None

    def _get(self) -> Executor:
        self._made = self._made or self._make()
        return self._made

    def check(self, works: Sequence[Need]) -> None:
        """As the executor that is made does."""
        if works:
            self._get().check(works)

    def run(self, board: Board, stop: StopFlag) -> Iterator[Outcome]:
        """As the executor that is made does; nothing for a finished board."""
        if not board.finished:
            yield from self._get().run(board, stop)

    def close(self) -> None:
        """Release workers, if there ever were any."""
        if self._made is not None:
            self._made.close()
