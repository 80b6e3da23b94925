"""What the watch makes of the machines that Ray lists, and of an autoscaler's plans."""

from __future__ import annotations

import time

import pytest
import ray
from ray.core.generated import autoscaler_pb2

from cluster.on_ray.watch import ClusterWatch, _grown, get_node
from cluster.scheduler import Node, Slot, count_fitting
from schemas.errors import ClusterUnreachable


def test_a_machine_counts_its_gpus_one_by_one() -> None:
    assert get_node({"CPU": 8.0, "GPU": 2.0, "memory": 64e9}) == Node(8.0, (1.0, 1.0), 64.0)
    assert get_node({}) == Node(0.0, (), float("inf"))


def test_the_session_is_one_machine_of_four_cpus(ray_address: str) -> None:
    watch = ClusterWatch()
    watch.check()
    watch.close()
    assert [(n.cpus, n.gpus) for n in watch.nodes] == [(4.0, ())]


def test_machines_that_an_autoscaler_may_add_count(ray_address: str) -> None:
    config = autoscaler_pb2.ClusterConfig()
    group = config.node_group_configs.add()
    group.name, group.max_count = "gpu", 3
    group.resources.update({"CPU": 16, "GPU": 4})
    kv = ray.experimental.internal_kv
    namespace, key = (
        ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode(),
        ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(),
    )
    kv._internal_kv_put(key, config.SerializeToString(), overwrite=True, namespace=namespace)
    try:
        present = [Node(4.0), get_node({"CPU": 16.0, "GPU": 4.0, "memory": 1e9})]
        assert count_fitting(tuple(_grown(present)), Slot(cpus=1, gpus=1)) == 12
    finally:
        kv._internal_kv_del(key, namespace=namespace)
    assert list(_grown([Node(4.0)])) == [Node(4.0)]


def test_silence_beyond_patience_is_reported_with_the_address(ray_address: str) -> None:
    watch = ClusterWatch(patience=5.0)
    watch.close()
    watch._seen = time.monotonic() - 6.0
    with pytest.raises(ClusterUnreachable, match=rf"its head at {ray_address} has not answered for \d+ s"):
        watch.check()
