"""The clock between a board and its workers, and the executor that has one worker."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster import executor
from cluster.board import Board
from cluster.executor import Rests, SerialExecutor, StopFlag
from cluster.works import Outcome
from schemas.errors import Interrupted
from tests.corridor import selftest_works


def test_what_failed_rests_half_a_second_then_two(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(executor.time, "monotonic", lambda: clock[0])
    board, rests = Board(selftest_works(1, 2), {}), Rests()
    for pause in (0.5, 2.0):
        task = next(iter(board.ready()))
        board.hand_out(task)
        board.record(Outcome(task, "lost"))
        for after, numbers in ((0.0, [1]), (pause - 0.01, [1]), (0.02, [0, 1])):
            clock[0] += after
            rests.end(board)
            assert [t.shard.number for t in board.ready()] == numbers


def test_the_others_go_on_meanwhile_and_a_stop_is_seen_while_all_that_is_left_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "FIRST_REST", 3600.0)
    board, stop, order = Board(selftest_works(1, 3), {}), StopFlag(), []
    serial = SerialExecutor(str(tmp_path))
    monkeypatch.setattr(serial._host, "run", lambda work, task: Outcome(task, "done" if task.shard.number else "lost"))
    with pytest.raises(Interrupted):
        for outcome in serial.run(board, stop):
            board.record(outcome)
            order.append(outcome.task.shard.number)
            if len(order) == 3:
                threading.Timer(0.2, stop.stop, ["SIGTERM"]).start()
    assert order == [0, 1, 2]
