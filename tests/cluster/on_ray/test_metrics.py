"""Counters of the driver on the page that Ray's node gives to a monitoring system."""

from __future__ import annotations

import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import COUNTERS
from cluster.on_ray.metrics import RayMetrics

DONE = {"event": "shard_done", "kind": "extract", "items": 10, "rows": 20, "seconds": {"open": 0.0, "process": 1.5}}
LOST = {"event": "shard_lost", "kind": "extract", "items": 0, "rows": 0, "seconds": {}, "final": False}
SEEN = {
    ("ray_miclip_shards_total", "done"): 3.0,
    ("ray_miclip_shards_total", "lost"): 1.0,
    ("ray_miclip_retries_total", ""): 1.0,
    ("ray_miclip_items_total", ""): 30.0,
    ("ray_miclip_rows_total", ""): 60.0,
    ("ray_miclip_shard_seconds_total", "process"): 4.5,
}


def figures(ray_address: str) -> dict[tuple[str, str], float]:
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return {
        (sample.name, sample.labels.get("state", "") + sample.labels.get("part", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("pipeline") == "counted"
    }


@pytest.mark.slow
def test_what_a_driver_counts_is_on_the_page_of_its_node(ray_address: str) -> None:
    listener = RayMetrics("counted")
    for event in (DONE, DONE, LOST, DONE, {"event": "planned", "kind": "extract"}):
        listener(event)
    until = time.monotonic() + 120
    while (found := figures(ray_address)) != SEEN and time.monotonic() < until:
        time.sleep(0.5)
    assert found == SEEN
    assert {name.removeprefix("ray_") for name, _ in found} <= {metric.exposed for metric in COUNTERS}
