"""The process that hosts a worker: a Ray actor around a shard host."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

import pyarrow as pa
import ray

from cluster.shard_host import ShardHost
from cluster.works import Outcome, Task, Work
from jobs.protocol import Gang


class Hello(NamedTuple):
    """Where an actor lives; for people."""

    pid: int
    ip: str
    threads: int


class HostActor:
    """Runs tasks one after another; starts light, so that a model is loaded only when a task needs it."""

    def __init__(self, store_uri: str, threads: int) -> None:
        self._threads = limit_threads(threads)
        self._store_uri = store_uri
        self._host = ShardHost(store_uri)

    def hello(self) -> Hello:
        """Answers as soon as the process is up."""
        return Hello(os.getpid(), ray.util.get_node_ip_address(), self._threads)

    def find_address(self) -> str:
        """`host:port` with a port that is free on this node now."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def join(self, gang: Gang) -> None:
        """Become one of a gang."""
        self._host = ShardHost(self._store_uri, gang)

    def run(self, work: Work, task: Task) -> Outcome:
        """Do one task; errors are outcomes."""
        return self._host.run(work, task)


def limit_threads(cpus: int) -> int:
    """Keep libraries that open threads (OpenMP, BLAS, Arrow) within the CPUs of this worker; call before torch is loaded.

    A smaller OMP_NUM_THREADS of the node's environment is kept.
    """
    stated = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, min(cpus, int(stated)) if stated.isdecimal() else cpus)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    pa.set_cpu_count(threads)
    return threads
