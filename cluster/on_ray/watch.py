"""What the cluster has, and whether it is still there, seen from a thread of its own so that a run never blocks on it."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterable, Mapping

import ray

from cluster.scheduler import Node
from schemas.errors import ClusterUnreachable

PATIENCE = 20.0
"""Seconds without an answer after which the cluster is given up; Ray itself ends the whole process after 60."""
MAX_GROWTH = 1000
"""At most so many machines are planned for, however far a cluster may grow."""


class ClusterWatch:
    """Asks the head every second; `nodes` is its last answer."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._own_node = ray.get_runtime_context().get_node_id()
        self._address = None if ray.util.client.ray.is_connected() else ray.get_runtime_context().gcs_address
        self._problem = ""
        self._end = threading.Event()
        self.nodes: tuple[Node, ...] = ()
        self._look()
        self._seen = time.monotonic()
        threading.Thread(target=self._look_on, name="cluster-watch", daemon=True).start()

    def check(self) -> None:
        """Raise if the cluster is gone.

        Raises:
            ClusterUnreachable: the head has not answered for `patience` seconds, or this machine's node has ended.
        """
        silent = time.monotonic() - self._seen
        if silent > self._patience:
            self._problem = (
                f"its head{f' at {self._address}' if self._address else ''} has not answered for {silent:.0f} s"
            )
        if self._problem:
            raise ClusterUnreachable(
                f"the Ray cluster is gone: {self._problem}; finished shards are kept, start the cluster again and "
                "repeat the same command"
            )

    def close(self) -> None:
        """Stop looking."""
        self._end.set()

    def _look_on(self) -> None:
        while not self._end.wait(1.0):
            try:
                if self._address is not None:
                    host, port = self._address.rsplit(":", 1)
                    socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
                self._look()
                self._seen = time.monotonic()
            except Exception:  # any failure means the same: no answer this time
                continue

    def _look(self) -> None:
        found = ray.nodes()
        alive = [node["Resources"] for node in found if node["Alive"]]
        if not alive or any(n["NodeID"] == self._own_node and not n["Alive"] for n in found):
            self._problem = "the node this command is attached to has ended"
        self.nodes = tuple(_grown([get_node(resources) for resources in alive]))


def get_node(resources: Mapping[str, float]) -> Node:
    """A machine from the resources Ray lists for it."""
    gpus = int(resources.get("GPU", 0))
    return Node(resources.get("CPU", 0.0), (1.0,) * gpus, resources.get("memory", math.inf) / 1e9)


def _grown(nodes: list[Node]) -> Iterable[Node]:
    """The machines there are, and those that an autoscaler may add; asking for them is what makes it add them."""
    yield from nodes
    for resources, most in _growth():
        node = get_node(resources)
        have = sum(n.cpus == node.cpus and n.gpus == node.gpus for n in nodes)
        yield from [node] * max(0, min(most, MAX_GROWTH) - have)


def _growth() -> list[tuple[dict[str, float], int]]:
    """(resources, most machines) of each kind of machine that the cluster's autoscaler knows; no autoscaler, none."""
    try:
        from ray._private.state import state

        config = state.get_cluster_config()
    except (ImportError, AttributeError):  # not a public interface: without it the cluster counts as it is
        return []
    if config is None:
        return []
    return [
        (
            {name: float(amount) for name, amount in group.resources.items()},
            MAX_GROWTH if group.max_count < 0 else group.max_count,
        )
        for group in config.node_group_configs
    ]
