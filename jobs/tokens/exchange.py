"""A source whose blocks are made by the members of a gang, each by one of them, and sent to all trainers; nothing is stored."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load, save
from torch import distributed as dist

from jobs.ahead import one_ahead
from jobs.tokens.gang import Membership, watching
from jobs.tokens.sources import Source, TokenRows
from schemas import errors
from schemas.errors import MiclipError, WorkFailed

Ranges = Sequence[tuple[int, int]]


class GangSource:
    """What a trainer reads from. All trainers must ask for the same, in the same order, until the first one closes it.

    Of the ranges of one call, the i-th is made by maker i modulo their number: by a feeder, which is told by the first
    trainer, or without feeders by a thread of a trainer.
    """

    def __init__(self, source: Source, member: Membership) -> None:
        assert member.trains, "feeders call feed()"
        self._source = source
        self._member = member
        self._making: threading.Thread | None = None

    def read(self, ranges: Ranges, sites: Sequence[str]) -> Iterator[dict[str, TokenRows]]:
        """As `Source.read`.

        Raises:
            GangLost: another member is gone. What a maker raised is raised by every trainer.
        """
        me, makers = self._member.rank, self._member.makers
        own: queue.Queue[bytes] = queue.Queue(maxsize=1)
        if me in makers:
            self._start_making(ranges, sites, own)
        elif me == 0:
            self._tell({"ranges": ranges, "sites": sites})
        for i in range(len(ranges)):
            maker = makers[i % len(makers)]
            yield _unpack(own.get() if maker == me else _receive(maker))

    def close(self) -> None:
        """The last thing that every trainer calls when it has all its steps: give others what they lack, let feeders go."""
        if self._making is not None:
            self._making.join()
        if self._member.rank == 0 and 0 not in self._member.makers:
            self._tell(None)

    def _start_making(self, ranges: Ranges, sites: Sequence[str], own: queue.Queue[bytes]) -> None:
        """In a thread; one request after another, because a slower trainer may still receive the last one's blocks."""
        before = self._making

        def make() -> None:
            if before is not None:
                before.join()
            _make(self._source, self._member, ranges, sites, own.put)

        self._making = threading.Thread(target=make, name="miclip-make", daemon=True)
        self._making.start()

    def _tell(self, request: object) -> None:
        for feeder in self._member.makers:
            _send(json.dumps(request).encode(), feeder)


def feed(source: Source, member: Membership) -> None:
    """Make this feeder's share of every request, until the trainers have enough.

    Raises:
        GangLost: a trainer is gone.
    """
    while (request := json.loads(_receive(0))) is not None:
        ranges = [(start, stop) for start, stop in request["ranges"]]
        _make(source, member, ranges, request["sites"])


def _make(
    source: Source,
    member: Membership,
    ranges: Ranges,
    sites: Sequence[str],
    keep: Callable[[bytes], None] | None = None,
) -> None:
    """Make this member's ranges of one request, the next while one is sent; an error goes to everybody in its place."""
    others = [trainer for trainer in range(member.trainers) if trainer != member.rank]

    def hand_out(data: bytes) -> None:
        if keep is not None:  # first, so that an error of sending comes out at home too
            keep(data)
        for trainer in others:
            _send(data, trainer)

    mine = ranges[member.makers.index(member.rank) :: len(member.makers)]
    try:
        for rows in one_ahead(map(_pack, source.read(mine, sites))):
            hand_out(rows)
    except Exception as error:
        hand_out(_pack_error(error))
        if keep is None:
            raise


# ---------------------------------------------------------------- messages


def _pack(rows: Mapping[str, TokenRows]) -> bytes:
    tensors = {"sites": _text(list(rows))}
    for i, some in enumerate(rows.values()):
        tensors[f"{i}.values"] = some.values
        tensors[f"{i}.image_of_row"] = torch.from_numpy(some.image_of_row)
        tensors[f"{i}.token"] = torch.from_numpy(some.token)
        tensors[f"{i}.images"] = _text(some.images)
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def _pack_error(error: Exception) -> bytes:
    return save({"error": _text([type(error).__name__, str(error)])})


def _unpack(data: bytes) -> dict[str, TokenRows]:
    tensors = load(data)
    if "error" in tensors:
        _raise(*_parse(tensors["error"]))
    return {
        site: TokenRows(
            tensors[f"{i}.values"],
            tensors[f"{i}.image_of_row"].numpy(),
            tensors[f"{i}.token"].numpy(),
            tuple((index, name) for index, name in _parse(tensors[f"{i}.images"])),
        )
        for i, site in enumerate(_parse(tensors["sites"]))
    }


def _raise(name: str, message: str) -> None:
    """What a maker raised: the same error if it is one of ours."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, MiclipError):
        raise kind(message)
    raise WorkFailed(f"{name}: {message}")


def _text(value: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _parse(text: torch.Tensor) -> Any:
    return json.loads(text.numpy().tobytes())


def _send(data: bytes, to: int) -> None:
    with watching(f"member {to}"):
        dist.send(torch.tensor([len(data)]), to)
        dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), to)


def _receive(source: int) -> bytes:
    with watching(f"member {source}"):
        length = torch.zeros(1, dtype=torch.int64)
        dist.recv(length, source)
        data = torch.empty(int(length), dtype=torch.uint8)
        dist.recv(data, source)
        return data.numpy().tobytes()
