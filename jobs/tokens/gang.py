"""A gang that trains on one stream: who trains, who makes blocks, and how they meet."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count

import torch
from torch import Tensor
from torch import distributed as dist

from jobs.protocol import Gang
from miclip_core.sae.parallel import TorchGroup
from schemas.errors import GangLost, MiclipError

START = timedelta(minutes=10)
"""Members come up side by side, but some may have to fetch a model first."""
PATIENCE = timedelta(hours=2)
"""A feeder waits as long as a window is trained on. Nobody waits so long for the dead: the connections of a process that
ends are closed at once, and when a machine vanishes the executor ends the rest of the gang."""
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True, eq=False)
class Membership:
    """The place of this process in a gang: its first `trainers` ranks train, those behind them only make blocks."""

    rank: int
    size: int
    trainers: int
    group: WatchedGroup | None
    """Where gradients are summed, over connections of their own; None for a feeder."""

    @property
    def trains(self) -> bool:
        """Whether this is a trainer."""
        return self.group is not None

    @property
    def makers(self) -> range:
        """The ranks that make blocks: the feeders, or else the trainers themselves."""
        return range(self.trainers, self.size) if self.size > self.trainers else range(self.size)


class WatchedGroup(TorchGroup):
    """The trainers; when one of them is gone the others say so. Every method raises GangLost."""

    def all_sum(self, tensor: Tensor) -> None:
        """As `Group.all_sum`."""
        with watching("a trainer"):
            super().all_sum(tensor)

    def all_max(self, tensor: Tensor) -> None:
        """As `Group.all_max`."""
        with watching("a trainer"):
            super().all_max(tensor)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """As `Group.gather`."""
        with watching("a trainer"):
            return super().gather(tensor)


@contextmanager
def watching(whom: str) -> Iterator[None]:
    """Turn what torch says of a broken connection into GangLost."""
    try:
        yield
    except MiclipError:
        raise
    except RuntimeError as error:
        raise GangLost(
            f"{whom} of this gang is gone or does not answer ({str(error).splitlines()[0]}); the gang starts again from "
            "the last kept state"
        ) from error


def join_gang(gang: Gang, trainers: int, device: str) -> Membership:
    """Meet the others at the address of the gang; every member calls this, once for each work.

    Blocks travel in the default group, by gloo; gradients in a group of the trainers.

    Raises:
        GangLost: not all of them came.
    """
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := _find_interface(gang.address)):
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    with watching("a member"):
        store = dist.PrefixStore(f"work-{next(_joined)}", _meet(gang))
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("gloo", store=store, rank=gang.rank, world_size=gang.size, timeout=PATIENCE)
        backend = _choose_backend(store, gang.rank, trainers, device)
        group = dist.new_group(list(range(trainers)), timeout=PATIENCE, backend=backend)
        mine = WatchedGroup(group) if gang.rank < trainers else None
    return Membership(gang.rank, gang.size, trainers, mine)


_joined = count()


@cache
def _meet(gang: Gang) -> dist.TCPStore:
    """The meeting point; it stays as long as the process does, because its port may not be free again."""
    host, _, port = gang.address.rpartition(":")
    return dist.TCPStore(host, int(port), gang.size, is_master=gang.rank == 0, timeout=START, wait_for_workers=False)


def _choose_backend(store: dist.Store, rank: int, trainers: int, device: str) -> str:
    """NCCL between trainers that have a GPU each; it refuses to share one, where gloo copies through memory."""
    store.set(f"device-{rank}", str(torch.cuda.get_device_properties(0).uuid) if device == "cuda" else "cpu")
    found = [store.get(f"device-{trainer}").decode() for trainer in range(trainers)]
    return "nccl" if "cpu" not in found and len(set(found)) == trainers else "gloo"


def _find_interface(address: str) -> str | None:
    """The network interface that leads to the meeting point, because a host's own name often stands for its loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address.rpartition(":")[0], 9))
        except OSError:
            return None
        own = socket.inet_aton(probe.getsockname()[0])
        return next((name for _, name in socket.if_nameindex() if _address_of(probe, name) == own), None)


def _address_of(probe: socket.socket, interface: str) -> bytes | None:
    try:
        return fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()))[20:24]
    except OSError:  # it has none, or this is no Linux
        return None
