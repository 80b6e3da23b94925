"""The counters of a run as Ray's own metrics, which every node of a cluster exposes for as long as it lives."""

from __future__ import annotations

from ray.util.metrics import Counter

from cluster.events import Event
from cluster.metrics import COUNTERS, Metric, changes


class RayMetrics:
    """A listener of events that counts work in the driver; Ray must be up.

    Ray gives them out about every 10 seconds, as `ray_miclip_…`. Stages that were published before are none of them:
    a run that has nothing to do starts no Ray.
    """

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._counters: dict[Metric, Counter] = {
            metric: Counter(metric.name, metric.meaning, metric.labels) for metric in COUNTERS
        }

    def __call__(self, event: Event) -> None:
        """Count one event."""
        for metric, labels, value in changes(self._pipeline, event):
            if value and metric in self._counters:  # Ray refuses to add nothing
                self._counters[metric].inc(value, dict(zip(metric.labels, labels, strict=True)))
