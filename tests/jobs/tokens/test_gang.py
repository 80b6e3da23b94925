"""Gangs of real processes: every division of the work gives the same batches, and a member that dies is noticed at once."""

from __future__ import annotations

import hashlib
import multiprocessing as mp
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import torch

from jobs.protocol import Gang
from jobs.tokens.exchange import GangSource, feed
from jobs.tokens.gang import join_gang
from jobs.tokens.order import Order
from jobs.tokens.sources import TokenRows
from jobs.tokens.window import batches
from schemas.errors import GangLost, MiclipError, NonFiniteActivation
from schemas.sae import StreamSettings

ORDER = Order(60, StreamSettings(batch_tokens=16, buffer_batches=3, block_images=4, holdout=0.1, seed=5))
SITES = {"a": 20, "b": 9}
"""Site -> steps; site b has one token per image, site a three."""


class Lagging:
    """A trainer that takes its time with every block."""

    def __init__(self, source: GangSource, delay: float) -> None:
        self._source, self._delay = source, delay

    def read(self, ranges: Sequence[tuple[int, int]], sites: Sequence[str]) -> Iterator[dict[str, TokenRows]]:
        for rows in self._source.read(ranges, sites):
            time.sleep(self._delay)
            yield rows


class Counted:
    """Rows that say where they come from, and a note of which ranges this process made; optionally slow or broken."""

    def __init__(self, delay: float = 0.0, broken: int | None = None) -> None:
        self.made: list[tuple[int, int]] = []
        self._delay, self._broken = delay, broken

    def read(self, ranges: Sequence[tuple[int, int]], sites: Sequence[str]) -> Iterator[dict[str, TokenRows]]:
        for start, stop in ranges:
            time.sleep(self._delay)
            if self._broken is not None and start <= self._broken < stop:
                raise NonFiniteActivation(f"image {self._broken} is NaN")
            self.made.append((start, stop))
            yield {site: make_rows(start, stop, 3 if site == "a" else 1) for site in sites}


def make_rows(start: int, stop: int, tokens: int) -> TokenRows:
    index = np.repeat(np.arange(start, stop), tokens)
    token = np.tile(np.arange(tokens, dtype=np.int32), stop - start)
    values = torch.from_numpy(np.stack([index, token], 1)).half()
    images = tuple((i, f"{i:032x}") for i in range(start, stop))
    return TokenRows(values, (index - start).astype(np.int32), token, images)


def digest_stream(source: Any) -> str:
    """Everything that a trainer sees, in one number."""
    seen = hashlib.sha256()
    for step in batches(source, ORDER, SITES):
        for site in sorted(step.x):
            seen.update(site.encode() + step.x[site].numpy().tobytes())
        seen.update(repr(sorted(step.position.items())).encode())
    return seen.hexdigest()


def member(gang: Gang, trainers: int, pipe: Connection, delay: float, broken: int | None) -> None:
    """One process of a gang: reports what it saw and made, or how it failed."""
    torch.set_num_threads(1)
    source = Counted(delay, broken)
    try:
        me = join_gang(gang, trainers, "cpu")
        pipe.send("joined")
        if me.trains:
            assert me.group is not None
            stream = GangSource(source, me)
            seen = digest_stream(Lagging(stream, 0.01 * gang.rank))
            total = torch.tensor([float(gang.rank + 1)])
            me.group.all_sum(total)
            stream.close()
            pipe.send((seen, source.made, total.item()))
        else:
            feed(source, me)
            pipe.send((None, source.made, None))
    except MiclipError as error:
        pipe.send(error)
        time.sleep(60)  # the process stays, as an actor would


class Gathering:
    """A gang of processes of their own."""

    def __init__(self, trainers: int, feeders: int, delay: float = 0.0, broken: int | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        context = mp.get_context("forkserver")  # a clean process that has torch already
        context.set_forkserver_preload(["jobs.tokens.exchange"])
        self.processes, self.pipes = [], []
        for rank in range(trainers + feeders):
            ours, theirs = context.Pipe()
            arguments = (Gang(rank, trainers + feeders, address), trainers, theirs, delay, broken)
            self.processes.append(context.Process(target=member, args=arguments, daemon=True))
            self.pipes.append(ours)
            self.processes[-1].start()

    def receive(self, rank: int, within: float = 60) -> Any:
        assert self.pipes[rank].poll(within), f"member {rank} said nothing for {within} s"
        return self.pipes[rank].recv()

    def join(self) -> None:
        assert [self.receive(rank) for rank in range(len(self.pipes))] == ["joined"] * len(self.pipes)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@pytest.mark.parametrize(("trainers", "feeders"), [(1, 0), (2, 0), (1, 2), (2, 2)])
def test_every_division_of_the_work_gives_the_batches_of_one_process(trainers: int, feeders: int) -> None:
    alone = Counted()
    expected = digest_stream(alone)
    gang = Gathering(trainers, feeders)
    try:
        gang.join()
        answers = [gang.receive(rank) for rank in range(trainers + feeders)]
    finally:
        gang.end()
    assert [seen for seen, _, _ in answers[:trainers]] == [expected] * trainers
    assert [total for _, _, total in answers[:trainers]] == [sum(range(1, trainers + 1))] * trainers
    made = [some for _, ranges, _ in answers for some in ranges]
    assert sorted(made) == sorted(alone.made)  # each block is made once
    makers = answers[trainers:] or answers
    assert sum(len(ranges) for _, ranges, _ in makers) == len(made)
    assert all(len(ranges) >= len(made) // len(makers) - 5 for _, ranges, _ in makers)


def test_a_feeder_that_is_killed_is_noticed_within_seconds() -> None:
    gang = Gathering(2, 2, delay=0.1)
    try:
        gang.join()
        time.sleep(0.5)
        os.kill(gang.processes[3].pid or 0, signal.SIGKILL)
        killed = time.monotonic()
        errors = [gang.receive(0), gang.receive(1)]
        assert all(isinstance(error, GangLost) for error in errors), errors
        assert isinstance(errors[0], ConnectionError) and "member 3 of this gang is gone" in str(errors[0])
        assert time.monotonic() - killed < 10
    finally:
        gang.end()


def test_what_a_feeder_raises_is_raised_by_every_trainer() -> None:
    gang = Gathering(2, 1, broken=ORDER.rows(ORDER.training[3])[0])
    try:
        gang.join()
        for rank in range(3):
            error = gang.receive(rank)
            assert isinstance(error, NonFiniteActivation) and "is NaN" in str(error)
    finally:
        gang.end()


def test_what_a_trainer_raises_while_it_makes_blocks_is_raised_by_all() -> None:
    gang = Gathering(2, 0, broken=ORDER.rows(ORDER.training[3])[0])
    try:
        gang.join()
        for rank in range(2):
            assert isinstance(gang.receive(rank), NonFiniteActivation)
    finally:
        gang.end()
